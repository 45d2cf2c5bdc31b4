package plugin

import (
	"bytes"
	"path/filepath"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/retained"
)

// startRetained reads which retained messages were verified before.
func (g *Gateway) startRetained(c *config.Config) (err error) {
	g.clears = downlink.NewQueue(maxClears, maxClearBytes)
	ofDevice := func(topic []byte) bool {
		level, gated := deviceLevel(g.gated, topic)
		return gated && g.registry.Lookup(level) != nil
	}
	if g.verified, err = retained.Open(filepath.Join(c.StateDir, retained.FileName), ofDevice, g.log); err != nil {
		return stateError(c, err)
	}
	gated := g.gated
	forget := func(ids []string) {
		for _, id := range ids {
			for _, t := range gated {
				g.verified.Forget([]byte(t.of(id)))
			}
		}
	}
	g.forgetRetained.Store(&forget)
	return nil
}

// Retained decides whether the broker may go on serving a retained message of a gated topic, or of one of the gateway's own: it asks so before it hands
// one to a new subscriber when check_retain_source is set. The clock and the ids are left aside, because the message was
// accepted when it came; p.Certified is too, because the publisher may have gone.
//
// What was verified once is served for as long as its device is registered and enabled, whatever its secrets are now.
// What was not, because it was retained before the plugin came, must be signed with one of them.
func (g *Gateway) Retained(p *Publish) (decision Decision) {
	defer func() {
		if v := recover(); v != nil {
			decision = Deny
			g.survived("retained message", v)
		}
	}()
	level, gated := deviceLevel(g.gated, p.Topic)
	if !gated {
		if _, own := deviceLevel(g.own, p.Topic); own {
			return Deny // the gateway retains nothing there, and the broker does not ask about what it has published
		}
		return NotConcerned
	}
	registered := g.registry.Lookup(p.Identity)
	if !bytes.Equal(level, p.Identity) || registered == nil || registered.Disabled || len(p.Payload) > g.decision.maxBytes {
		return Deny
	}
	if g.verified.Verified(p.Topic, p.Payload) {
		return Allow
	}
	e, err := g.readers.Decode(p.Payload)
	if err != nil || !bytes.Equal(e.DeviceID, p.Identity) || !g.devices.of(registered).signed(e) {
		return Deny
	}
	g.verified.Note(p.Topic, p.Payload)
	return Allow
}
