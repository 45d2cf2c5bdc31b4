package gate

import (
	"bytes"
	"time"
	"unsafe"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/retained"
)

// retainedMessages is what is known of messages of gated topics that the broker keeps.
type retainedMessages struct {
	verified *retained.Memory
	decoder  envelope.Decoder
	keys     keyBudget // not that of the devices that publish, which a subscriber could use up
	served   served
}

// served is the retained message that a subscriber was allowed to read last. With check_retain_source the broker's next
// question is about its source. It is recognised by the address of its payload, so it is void after any other event.
type served struct {
	payload *byte
	size    int
}

func (s *served) note(p *Publish) { *s = served{unsafe.SliceData(p.Payload), len(p.Payload)} }

// take reports whether p is that message, and forgets it.
func (s *served) take(p *Publish) bool {
	same := s.payload != nil && s.payload == unsafe.SliceData(p.Payload) && s.size == len(p.Payload)
	*s = served{}
	return same
}

// mayServe reports whether a message of a gated topic with the retain flag, which is not empty, may be delivered to a
// subscriber: one that is retained, or one that is being published now, which has been noted as verified. level is the
// topic's device level. Clock and message id are not checked, because the message was accepted when it came.
//
// A message that was verified once is served as long as its device is registered and enabled, whatever its secrets are now.
// Any other, retained before the plugin was installed, must be signed with one of the present secrets.
func (g *Gate) mayServe(p *Publish, level []byte) bool {
	registered := g.registry.Lookup(level)
	if registered == nil || registered.Disabled || len(p.Payload) > g.decision.maxBytes {
		return false
	}
	if !g.retained.verified.Verified(p.Topic, p.Payload) {
		e, err := g.retained.decoder.Decode(p.Payload)
		if err != nil || !bytes.Equal(e.DeviceID, level) || !g.signedRetained(g.devices.of(registered), e) {
			return false
		}
		g.retained.verified.Note(p.Topic, p.Payload)
	}
	return true
}

// signedRetained reports whether a retained message is signed. What is not verified, because too much has failed, is not
// served either. Failures count against no device: any subscriber can ask for the message again and again.
func (g *Gate) signedRetained(d *device, e *envelope.Envelope) bool {
	if d.failures == nil {
		return d.signed(e)
	}
	var failures keyFailures
	good, _ := g.retained.keys.verify(d, &failures, e, time.Now())
	return good
}

// Retained decides whether the source of a retained message may still write to its topic, a gated one or one of the
// gateway's own: the broker asks this before it serves one, if check_retain_source is set and a client published it. The
// Identity of p is the source's user name; there is no connection and no certificate.
//
// The source must be the device. The message itself was decided on when the broker asked for the subscriber; it does not
// ask for a bridge of its own.
func (g *Gate) Retained(p *Publish) (decision Decision) {
	defer func() {
		if v := recover(); v != nil {
			decision = Deny
			g.panics.Report("retained message", v)
		}
	}()
	known := g.retained.served.take(p)
	level, gated := g.topics.Gated(p.Topic)
	if !gated {
		if _, own := g.topics.Own(p.Topic); own {
			return Deny
		}
		return NotConcerned
	}
	if bytes.Equal(level, p.Identity) && (known || g.mayServe(p, level)) {
		return Allow
	}
	return Deny
}

// ServeRetained is Retained for the broker's question. After a restart the broker also asks about what a plugin published,
// without a user name and a client id: the source of such a message is the device.
func (g *Gate) ServeRetained(p *Publish) Decision {
	if len(p.Identity) > 0 || len(p.ClientID) > 0 {
		return g.Retained(p)
	}
	source := *p
	if level, gated := g.topics.Gated(p.Topic); gated {
		source.Identity = level
	}
	return g.Retained(&source)
}
