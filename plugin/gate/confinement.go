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
	// unknownCertificate may do nothing: its certificate is no registered device's, and [acl] asks for that.
	unknownCertificate clientKind = iota
	// ofDevice has no business but with its own topics: a registered device, or one that was removed.
	ofDevice
	// ofOthers is none of the gateway's business beyond gated topics and its own.
	ofOthers
)

// Strangers is by what the broker's side has to tell clients whose certificates are no registered device's.
type Strangers int

// The ways to tell them.
const (
	StrangersAny           Strangers = iota // need not be told from others
	StrangersByName                         // every user name is a certificate's: by that
	StrangersByCertificate                  // by the certificate, for each client
)

// A confinement knows to whom other topics are closed. The maps do not change; broker's thread only.
type confinement struct {
	registry  *registry.Registry
	removed   *former.Set
	deny      bool                // [acl] unknown_certificates = "deny"
	known     map[string]struct{} // [acl] certificates
	strangers Strangers
	byName    bool // every listener takes user names from certificates that it demands, or it is not known
}

func (c *confinement) configure(deny bool, known []string, byName bool) {
	c.deny, c.byName = deny, byName
	c.known = make(map[string]struct{}, len(known))
	for _, name := range known {
		c.known[name] = struct{}{}
	}
}

// settle finds out how clients with unknown certificates are told apart now, and reports whether that has changed.
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
// released: to be removed gives nobody more rights. The name is enough, whoever bears it.
func (c *confinement) isDevice(name []byte) bool {
	return c.registry.Lookup(name) != nil || c.wasRemoved(name)
}

// wasRemoved is isDevice of a name that no registered device has.
func (c *confinement) wasRemoved(name []byte) bool {
	return c.removed.Has(name, c.registry.WasRegistered(name))
}

// of returns what the client that p is of is to the gateway.
func (c *confinement) of(p *Publish) clientKind {
	if c.isDevice(p.Identity) {
		return ofDevice
	}
	name := p.Identity
	if p.Presented {
		if name = p.CommonName; !bytes.Equal(name, p.Identity) && c.registry.Lookup(name) == nil && c.wasRemoved(name) {
			return ofDevice // a removed device that has a user name of another's choice
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

// settleStrangers has the broker's side tell clients with unknown certificates as the settings demand.
func (g *Gate) settleStrangers() {
	g.confinement.settle()
	g.broker.SetStrangers(g.confinement.strangers)
	g.bystandersChanged()
}

// followStrangers is settleStrangers when removed ids begin or cease to be known incompletely. In a tick.
func (g *Gate) followStrangers() {
	if g.confinement.settle() {
		g.broker.SetStrangers(g.confinement.strangers)
		g.bystandersChanged()
	}
}

// bystandersChanged voids what the broker's side has noted of clients that are no devices.
func (g *Gate) bystandersChanged() {
	if g.changed != nil {
		g.changed()
	}
}
