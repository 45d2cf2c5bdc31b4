package plugin

import (
	"bytes"
	"path/filepath"
	"unsafe"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/retained"
)

// startRetained reads which retained messages were verified before.
func (g *Gateway) startRetained(c *config.Config) (err error) {
	g.clearer = downlink.NewClearer(g.down, maxClears, func(topic string) { g.verified.Forget([]byte(topic)) })
	ofDevice := func(topic []byte) bool {
		level, gated := gate.DeviceLevel(g.gated, topic)
		return gated && g.registry.Lookup(level) != nil
	}
	if g.verified, err = retained.Open(filepath.Join(c.StateDir, retained.FileName), ofDevice, g.log); err != nil {
		return stateError(c, err)
	}
	gated := g.gated
	forget := func(ids []string) {
		for _, id := range ids {
			for _, t := range gated {
				g.verified.Forget([]byte(t.Of(id)))
			}
		}
	}
	g.forgetRetained.Store(&forget)
	return nil
}

// served is the retained message that a subscriber was allowed last. With check_retain_source the broker's next question
// is about its source. It is known again by where its payload lies, so it is void after any other event.
type served struct {
	payload *byte
	size    int
}

func (s *served) note(p *gate.Publish) { *s = served{unsafe.SliceData(p.Payload), len(p.Payload)} }

// take reports whether p is that message, and forgets it.
func (s *served) take(p *gate.Publish) bool {
	same := s.payload != nil && s.payload == unsafe.SliceData(p.Payload) && s.size == len(p.Payload)
	*s = served{}
	return same
}

// mayServe reports whether a message of a gated topic with the retain flag, which is not empty, may be given to a
// subscriber: one that is retained, or one that is just being published, which has been noted as verified. level is the
// device's of the topic. The clock and the ids are left aside, because the message was accepted when it came.
//
// What was verified once is served for as long as its device is registered and enabled, whatever its secrets are now.
// What was not, because it was retained before the plugin came, must be signed with one of them.
func (g *Gateway) mayServe(p *gate.Publish, level []byte) bool {
	registered := g.registry.Lookup(level)
	if registered == nil || registered.Disabled || len(p.Payload) > g.decision.maxBytes {
		return false
	}
	if !g.verified.Verified(p.Topic, p.Payload) {
		e, err := g.readers.Decode(p.Payload)
		if err != nil || !bytes.Equal(e.DeviceID, level) || !g.devices.of(registered).signed(e) {
			return false
		}
		g.verified.Note(p.Topic, p.Payload)
	}
	return true
}

// Retained decides whether the source of a retained message may still write to its topic, a gated one or one of the
// gateway's own: the broker asks so before it serves one, if check_retain_source is set and a client published it. Of p
// Identity is the source's user name; there is no connection and no certificate.
//
// The source must be the device. The message itself was decided on when the broker asked for the subscriber; it does not
// ask for a bridge of its own.
func (g *Gateway) Retained(p *gate.Publish) (decision gate.Decision) {
	defer func() {
		if v := recover(); v != nil {
			decision = gate.Deny
			g.survived("retained message", v)
		}
	}()
	known := g.served.take(p)
	level, gated := gate.DeviceLevel(g.gated, p.Topic)
	if !gated {
		if _, own := gate.DeviceLevel(g.own, p.Topic); own {
			return gate.Deny
		}
		return gate.NotConcerned
	}
	if bytes.Equal(level, p.Identity) && (known || g.mayServe(p, level)) {
		return gate.Allow
	}
	return gate.Deny
}

// ServeRetained is Retained as the broker asks. After a restart it asks about what a plugin published too, in the name of
// nobody: the source of that is the device.
func (g *Gateway) ServeRetained(p *gate.Publish) gate.Decision {
	if len(p.Identity) > 0 || len(p.ClientID) > 0 {
		return g.Retained(p)
	}
	source := *p
	if level, gated := gate.DeviceLevel(g.gated, p.Topic); gated {
		source.Identity = level
	}
	return g.Retained(&source)
}
