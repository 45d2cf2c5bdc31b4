package plugin

import (
	"bytes"
	"errors"
	"maps"
	"time"

	"mosquitto-bouncer/plugin/brokerlog"
	"mosquitto-bouncer/plugin/gate"
)

// maxOwners is how many clients that are no devices are remembered to have their user name for their client id.
const maxOwners = 4096

// clientIDs tells whose a client id is. To the broker it is the name of a session and nobody's: whoever connects with it
// ends the connection that has it and takes the session, with its subscriptions and what waits in it.
//
// Here an id belongs to the identity that has the same name: to a device, registered or removed and not released, and to
// any other client that was seen with a certificate whose common name is its user name and its client id. Everyone may use
// any other id. Broker's thread only.
type clientIDs struct {
	isDevice func(name []byte) bool // confinement.isDevice
	owners   map[string]struct{}    // who are no devices
	changed  func()                 // called when another client has become an owner; nil: nobody wants to know
}

// foreign reports whether the client id of p is another identity's.
func (c *clientIDs) foreign(p *gate.Publish) bool {
	if len(p.ClientID) == 0 || bytes.Equal(p.ClientID, p.Identity) {
		return false
	}
	if c.isDevice(p.ClientID) {
		return true
	}
	_, owned := c.owners[string(p.ClientID)]
	return owned
}

// note remembers a client that is no device if its client id is its own.
func (c *clientIDs) note(p *gate.Publish) {
	if !p.Certified || !bytes.Equal(p.ClientID, p.Identity) || len(c.owners) == maxOwners {
		return
	}
	if _, known := c.owners[string(p.ClientID)]; known {
		return
	}
	if c.owners == nil {
		c.owners = make(map[string]struct{})
	}
	c.owners[string(p.ClientID)] = struct{}{}
	if c.changed != nil {
		c.changed()
	}
}

// offenders are the clients that are to be disconnected in the next tick, each with why, unless their connections end by
// themselves before. Broker's thread only.
type offenders struct {
	waiting map[uintptr]offender // by connection
	kicking bool                 // the broker is disconnecting one right now, and calls back meanwhile
}

// An offender is one of them.
type offender struct {
	device string
	client string
	why    string
}

// add has a client disconnected. When as many wait as there is room for it stays connected, until it offends again. It
// reports whether the connection was not among them before.
func (o *offenders) add(p *gate.Publish, why string) bool {
	if _, known := o.waiting[p.Connection]; known {
		return false
	}
	if len(o.waiting) < maxOffenders {
		if o.waiting == nil {
			o.waiting = make(map[uintptr]offender)
		}
		o.waiting[p.Connection] = offender{string(p.Identity), string(p.ClientID), why}
	}
	return true
}

// ended takes a connection off the list. It reports whether it was on it.
func (o *offenders) ended(connection uintptr) bool {
	_, known := o.waiting[connection]
	delete(o.waiting, connection)
	return known
}

// disconnect hands each offender to kick, and says so in the log through say. Only in a tick: the broker calls back while
// it disconnects.
func (o *offenders) disconnect(kick func(client string), say func(device, line string)) {
	if len(o.waiting) == 0 {
		return
	}
	all := maps.Clone(o.waiting)
	clear(o.waiting)
	for _, offender := range all {
		line := brokerlog.Line("disconnected "+offender.why, "device", string(cut([]byte(offender.device), 64)), "client", string(cut([]byte(offender.client), 64)))
		say(offender.device, line)
		o.kick(func() { kick(offender.client) })
	}
}

// kick calls f, which has the broker end connections.
func (o *offenders) kick(f func()) {
	o.kicking = true
	defer func() { o.kicking = false }()
	f()
}

var errForeignClient = errors.New("the client id is another identity's; a client may use its own user name or an id that is nobody's. use_username_as_clientid true on every listener rules this out")

// refuseForeign refuses what a client does under the id of another identity, and has it disconnected.
func (g *Gateway) refuseForeign(p *gate.Publish) {
	g.decision.now = time.Now()
	if g.offenders.add(p, "for bearing the client id of another identity") {
		g.figures.foreignClients.Add(1)
	}
	g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, gate.ForeignClient, errForeignClient)
}

// expelImpostor has a client disconnected that bears a device's user name and client id without the certificate for it: it
// has the device's session. It reports whether it is one. Not for last wills, whose client may show no certificate any more.
func (g *Gateway) expelImpostor(p *gate.Publish) bool {
	if p.Certified && !p.OtherIssuer || !bytes.Equal(p.ClientID, p.Identity) || g.registry.Lookup(p.Identity) == nil {
		return false
	}
	if g.offenders.add(p, "for bearing a device's user name and client id without its certificate") {
		g.figures.foreignClients.Add(1)
	}
	return true
}

var errForeignEnded = errors.New("a connection under the client id of another identity has ended; it ended that identity's connection, and may have ended its session. use_username_as_clientid true on every listener rules this out")

// Connected takes note of a new connection, which Mosquitto tells of from 2.1 on.
func (g *Gateway) Connected(p *gate.Publish) {
	defer func() {
		if v := recover(); v != nil {
			g.survived("connect", v)
		}
	}()
	if g.clientIDs.foreign(p) {
		g.refuseForeign(p)
		return
	}
	g.expelImpostor(p)
}

// foreignEnded says in the log that a connection under the client id of another identity has ended of which nothing has
// been seen before: connecting alone throws the other one out, and no plugin is asked.
func (g *Gateway) foreignEnded(p *gate.Publish) {
	g.decision.now = time.Now()
	g.figures.foreignClients.Add(1)
	g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, gate.ForeignClient, errForeignEnded)
}
