package plugin

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/gate"
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

func (c *confinement) configure(acl config.ACL) {
	c.deny = acl.UnknownCertificates == config.UnknownDeny
	c.known = make(map[string]struct{}, len(acl.Certificates))
	for _, name := range acl.Certificates {
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
func (c *confinement) of(p *gate.Publish) clientKind {
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

var errUnknownCertificate = errors.New("the certificate is no registered device's, and its name is not in [acl] certificates")

// startConfinement reads which devices were removed.
func (g *Gateway) startConfinement(c *config.Config) error {
	removed, err := former.Open(filepath.Join(c.StateDir, former.FileName), g.registry, g.log)
	if err != nil {
		return stateError(c, err)
	}
	g.confinement = confinement{registry: g.registry, removed: removed}
	g.confinement.configure(c.ACL)
	g.removed.Store(removed)
	removed.CatchUp(g.registry)
	g.checks = append(g.checks, removed.Err)
	return nil
}

// settleStrangers has the broker's side tell clients with unknown certificates as the settings demand. conf is the
// broker's configuration; nil: it is not known, and every user name counts as a certificate's.
func (g *Gateway) settleStrangers(conf *brokerconf.Config) {
	g.confinement.byName = conf == nil || conf.NamesAreCertificates()
	g.confinement.settle()
	g.host.SetStrangers(g.confinement.strangers)
	g.bystandersChanged()
}

// followStrangers is settleStrangers when removed ids begin or cease to be known incompletely. In a tick.
func (g *Gateway) followStrangers() {
	if g.confinement.settle() {
		g.host.SetStrangers(g.confinement.strangers)
		g.bystandersChanged()
	}
}

// bystandersChanged voids what the broker's side has noted of clients that are no devices.
func (g *Gateway) bystandersChanged() {
	if g.deviceChange != nil {
		g.deviceChange()
	}
}

// releaseRemoved carries out an operator's order to let removed devices' ids go; no id: all of them.
func (g *Gateway) releaseRemoved(ids []string) error {
	if len(ids) == 0 {
		registered := func(yield func(string) bool) {
			for id := range g.registry.IDs() {
				if !yield(id) {
					return
				}
			}
		}
		return g.confinement.removed.ReleaseAll(registered, g.registry.Removed())
	}
	for _, id := range ids {
		if !registry.ValidID(id) {
			return fmt.Errorf("%q is no device id", id)
		}
	}
	return g.confinement.removed.Release(ids)
}
