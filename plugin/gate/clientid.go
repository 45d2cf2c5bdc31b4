package gate

import (
	"bytes"
	"errors"
	"time"
)

// maxOwners is for how many clients that are not devices the gate remembers that their client id is their user name.
const maxOwners = 4096

// clientIDs knows to which identity a client id belongs. For the broker a client id is only the name of a session: a client
// that connects with it ends the connection that has it and takes over the session, with its subscriptions and the messages
// that wait in it.
//
// Here an id belongs to the identity that has the same name: to a device, registered or removed and not released, and to
// any other client that was seen with a certificate whose common name is its user name and its client id. Every client may
// use any other id. Broker's thread only.
type clientIDs struct {
	isDevice func(name []byte) bool // confinement.isDevice
	owners   map[string]struct{}    // that are not devices
	changed  func()                 // called when another client has become an owner; nil: not set
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

// note remembers a client that is not a device, if its client id is its user name.
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

// expelImpostor disconnects, in the next tick, a client that uses a device's user name and client id without the device's
// certificate, because it has the device's session. It reports whether the client is such an impostor. It is not called for
// last wills, whose client may show no certificate any more.
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

// foreignEnded logs the end of a connection under the client id of another identity that has not been noticed before:
// connecting is enough to end the other connection, and the broker asks no plugin about it.
func (g *Gate) foreignEnded(p *Publish) {
	g.decision.now = time.Now()
	g.figures.foreignClients.Add(1)
	g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, ForeignClient, errForeignEnded)
}
