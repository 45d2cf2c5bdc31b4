package gate

import (
	"bytes"
	"errors"

	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/registry"
)

// A clientKind is what a client is to the gateway. The zero value is the least.
type clientKind uint8

const (
	// unknownCertificate may do nothing: its certificate does not belong to a registered device, and [acl] denies such clients.
	unknownCertificate clientKind = iota
	// ofDevice may use only its own topics: a registered device, or one that was removed.
	ofDevice
	// ofOthers is any other client: the gateway decides only on gated topics and on its own.
	ofOthers
)

// Strangers says how the broker's side recognises clients whose certificates do not belong to a registered device.
type Strangers int

// The ways to recognise them.
const (
	StrangersAny           Strangers = iota // they are treated as other clients
	StrangersByName                         // by the user name: every user name comes from a certificate
	StrangersByCertificate                  // by the certificate, for each client
)

// A confinement knows which clients may not use other topics. The maps do not change; broker's thread only.
type confinement struct {
	registry  *registry.Registry
	removed   *former.Set
	deny      bool                // [acl] unknown_certificates = "deny"
	known     map[string]struct{} // [acl] certificates
	strangers Strangers
	byName    bool // every listener requires certificates and takes user names from them, or it is not known
}

func (c *confinement) configure(deny bool, known []string, byName bool) {
	c.deny, c.byName = deny, byName
	c.known = make(map[string]struct{}, len(known))
	for _, name := range known {
		c.known[name] = struct{}{}
	}
}

// settle finds out how clients with unknown certificates are recognised now, and reports whether that has changed.
func (c *confinement) settle() bool {
	before := c.strangers
	switch {
	case !c.deny && c.removed.Complete():
		c.strangers = StrangersAny
	case c.byName:
		c.strangers = StrangersByName
	default:
		c.strangers = StrangersByCertificate
	}
	return c.strangers != before
}

// isDevice reports whether a name is that of a registered device, or of one that was registered once and was not
// released: a removal gives no client more rights. Only the name counts, and not which client uses it.
func (c *confinement) isDevice(name []byte) bool {
	return c.registry.Lookup(name) != nil || c.wasRemoved(name)
}

// wasRemoved is isDevice for a name that no registered device has.
func (c *confinement) wasRemoved(name []byte) bool {
	return c.removed.Has(name, c.registry.WasRegistered(name))
}

// of returns the kind of the client of p.
func (c *confinement) of(p *Publish) clientKind {
	if c.isDevice(p.Identity) {
		return ofDevice
	}
	name := p.Identity
	if p.Presented {
		if name = p.CommonName; !bytes.Equal(name, p.Identity) && c.registry.Lookup(name) == nil && c.wasRemoved(name) {
			return ofDevice // a removed device that connects under another user name
		}
	}
	if c.strangers == StrangersAny || c.strangers == StrangersByCertificate && !p.Presented {
		return ofOthers
	}
	if _, known := c.known[string(name)]; known || c.registry.Lookup(name) != nil {
		return ofOthers
	}
	return unknownCertificate
}

var errUnknownCertificate = errors.New("the certificate does not belong to a registered device, and its name is not in [acl] certificates")

// settleStrangers makes the broker's side recognise clients with unknown certificates as the settings require.
func (g *Gate) settleStrangers() {
	g.confinement.settle()
	g.broker.SetStrangers(g.confinement.strangers)
	g.bystandersChanged()
}

// followStrangers is settleStrangers for the case that the list of removed ids has become complete or incomplete. In a tick.
func (g *Gate) followStrangers() {
	if g.confinement.settle() {
		g.broker.SetStrangers(g.confinement.strangers)
		g.bystandersChanged()
	}
}

// bystandersChanged makes the broker's side forget what it has noted of clients that are not devices.
func (g *Gate) bystandersChanged() {
	if g.changed != nil {
		g.changed()
	}
}
