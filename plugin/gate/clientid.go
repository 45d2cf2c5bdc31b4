package gate

import (
	"bytes"
	"errors"
	"time"
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
func (c *clientIDs) foreign(p *Publish) bool {
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
func (c *clientIDs) note(p *Publish) {
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

var errForeignClient = errors.New("the client id is another identity's user name; a client may use its own user name or an id that is not another identity's user name. use_username_as_clientid true on every listener prevents this")

// refuseForeign refuses what a client does under the id of another identity, and has it disconnected.
func (g *Gate) refuseForeign(p *Publish) {
	g.decision.now = time.Now()
	if g.offenders.add(p, "for using the client id of another identity") {
		g.figures.foreignClients.Add(1)
	}
	g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, ForeignClient, errForeignClient)
}

// expelImpostor has a client disconnected that bears a device's user name and client id without the certificate for it: it
// has the device's session. It reports whether it is one. Not for last wills, whose client may show no certificate any more.
func (g *Gate) expelImpostor(p *Publish) bool {
	if p.Certified && !p.OtherIssuer || !bytes.Equal(p.ClientID, p.Identity) || g.registry.Lookup(p.Identity) == nil {
		return false
	}
	if g.offenders.add(p, "for using a device's user name and client id without its certificate") {
		g.figures.foreignClients.Add(1)
	}
	return true
}

var errForeignEnded = errors.New("a connection under the client id of another identity has ended; it ended that identity's connection, and may have ended its session. use_username_as_clientid true on every listener prevents this")

// foreignEnded says in the log that a connection under the client id of another identity has ended of which nothing has
// been seen before: connecting alone throws the other one out, and no plugin is asked.
func (g *Gate) foreignEnded(p *Publish) {
	g.decision.now = time.Now()
	g.figures.foreignClients.Add(1)
	g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, ForeignClient, errForeignEnded)
}
