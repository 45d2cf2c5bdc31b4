package plugin

import (
	"bytes"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/gate"
)

// ownTopics are the topics that the gateway itself publishes to, of every device: no client may.
func ownTopics(c *config.Config) (own []gate.Topic) {
	for _, topic := range []string{c.Response.Topic, c.Command.Topic, c.Rejected.Topic} {
		if topic != "" {
			own = append(own, gate.NewTopic(strings.Replace(topic, config.DeviceID, "+", 1)))
		}
	}
	if c.Response.Topic != "" {
		own[0].Below = true // a device may choose a topic below for single responses
	}
	return own
}

// Access decides whether a client may do something with a topic. The broker asks before every publish and every last
// will (Write), every subscription and every delivery.
//
// A write to a gated topic gets the whole verdict here, since a last will is never put to Message; for a publish Message
// follows and finds the verdict ready. The two cannot be told apart here, so what only a publish may do waits for
// Message, and until that has been called a delivery of the same message is denied: see read.
func (g *Gateway) Access(action gate.Action, p *gate.Publish) (decision gate.Decision) {
	defer func() {
		if v := recover(); v != nil {
			decision = gate.Deny
			g.pending.set = false
			g.survived("access", v)
			g.refuse(p, nil, nil, gate.Internal, nil)
		}
	}()
	g.served = served{}
	switch action {
	case gate.Read:
		return g.read(p)
	case gate.Write:
		timing := g.figures.access.Begin()
		decision = g.write(p)
		g.figures.access.End(timing)
		return decision
	case gate.Subscribe:
		return g.subscribe(p)
	case gate.Unsubscribe:
		return g.unsubscribe(p)
	default:
		return gate.Deny
	}
}

// Topics names the topics that are the gateway's concern, for as long as it runs: those that begin with before and end
// with after, with one level between them that is a device's id; gated, or the gateway's own.
func (g *Gateway) Topics(name func(before, after string, gated bool)) {
	for _, t := range g.gated {
		name(t.Before, t.After, true)
	}
	for _, t := range g.own {
		name(t.Before, t.After, false)
		if t.Below { // all that begins so: it is for this package to look closer
			name(t.Before, "", false)
		}
	}
}

// OnDeviceChange has changed called, from another goroutine, after every change of the registry and of [acl], and when
// another client id becomes an identity's: only then can a user name become a device's, or a client id another
// identity's. Until then a caller may go by the answers it has had, where a Read, or a Write to a topic that Topics does
// not name, was not concerned.
func (g *Gateway) OnDeviceChange(changed func()) {
	g.deviceChange = changed
	g.registry.OnChange(changed)
	g.clientIDs.changed = changed
}

// write decides on a publish or a last will.
func (g *Gateway) write(p *gate.Publish) gate.Decision {
	g.endPending()
	g.drain()
	if g.clientIDs.foreign(p) {
		g.refuseForeign(p)
		return gate.Deny
	}
	if p.OtherIssuer && !g.hasDeparted(p) {
		g.expelImpostor(p)
	}
	level, gated := gate.DeviceLevel(g.gated, p.Topic)
	if !gated {
		// The topics of the gateway are its own, and a device has no others to publish to.
		if _, own := gate.DeviceLevel(g.own, p.Topic); own {
			g.forbid(p, errOwnTopic)
			return gate.Deny
		}
		switch g.confinement.of(p) {
		case ofOthers:
			g.clientIDs.note(p)
			return gate.NotConcerned
		case ofDevice:
			g.forbid(p, errPublish)
		default:
			g.forbid(p, errUnknownCertificate)
		}
		return gate.Deny
	}
	if g.hasDeparted(p) {
		g.forbid(p, errWill)
		return gate.Deny
	}
	g.decide(p, level)
	if g.pending.reason.Good() {
		return gate.Allow
	}
	g.pending.set = false
	g.refuse(p, g.pending.device, g.pending.envelope, g.pending.reason, g.pending.detail)
	return gate.Deny
}

// forbid says in the log that a client has no business with a topic.
func (g *Gateway) forbid(p *gate.Publish, detail error) {
	g.decision.now = time.Now()
	g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, gate.Forbidden, detail)
}

// hasDeparted reports whether the connection of p has ended since the last tick, so that p is its last will: before the
// broker uses the number for another connection that has something to publish, it ticks several times. One that never
// ticks (2.0.11 with per_listener_settings) shows no certificate of a client that has gone, which is as good a reason to
// refuse its will.
func (g *Gateway) hasDeparted(p *gate.Publish) bool {
	return g.ticks > 0 && g.departed != 0 && g.departed == p.Connection
}

// decide reaches the verdict on a publish to a gated topic and leaves it in g.pending.
func (g *Gateway) decide(p *gate.Publish, level []byte) {
	g.decision.now = time.Now()
	g.missTicks()
	g.seen.Expire(g.decision.now.Unix(), expirePerMessage)
	g.outbox.NoteForgotten(g.decision.now.Unix())
	v := &g.pending
	v.keep(p, g.decision.maxBytes)
	registered := g.registry.Lookup(p.Identity)
	v.device = g.devices.of(registered)
	v.publish.OtherCertificate = g.otherCertificate(p, registered)
	v.envelope, v.reason, v.detail = judge(&v.publish, level, v.device, &g.decision)
	if v.reason == gate.Accepted {
		v.reason, v.detail = g.admitAnswer(&v.publish, v.envelope)
	}
}

// read decides on a delivery. It is asked for every subscriber of every message, so it does little.
func (g *Gateway) read(p *gate.Publish) gate.Decision {
	if level, gated := gate.DeviceLevel(g.gated, p.Topic); gated {
		if len(p.Payload) == 0 {
			return gate.Deny // no envelope: the gateway's own, by which a retained will is removed
		}
		if g.pending.set && g.pending.sameMessage(p) {
			// Access was asked to write it and Message was not called, and now it is being delivered: a last will.
			g.refuseWill()
			return gate.Deny
		}
		if p.Retain {
			if !g.mayServe(p, level) {
				return gate.Deny
			}
			g.served.note(p)
		}
	} else if _, own := gate.DeviceLevel(g.own, p.Topic); own && p.Retain {
		return gate.Deny // put there before the plugin came: it lets nobody retain anything there, and retains nothing itself
	}
	if g.sessionQuestions.answers(p) {
		return gate.Deny
	}
	if g.clientIDs.foreign(p) {
		return gate.Deny // it has taken over the session, and what waits in it is not for it to read
	}
	switch g.confinement.of(p) {
	case ofOthers:
		return gate.NotConcerned
	case ofDevice:
		if d := g.registry.Lookup(p.Identity); d != nil && d.Disabled {
			return gate.Deny
		}
		return g.ownTopic(p)
	default:
		return gate.Deny
	}
}

// ownTopic decides on a device's wish to have what is published to a topic. Who bears the name without the certificate,
// as a device does whose session outlives its connection, has no claim of his own: others decide.
func (g *Gateway) ownTopic(p *gate.Publish) gate.Decision {
	if g.isOwnTopic(p) {
		if d := g.registry.Lookup(p.Identity); d != nil && !g.otherCertificate(p, d) {
			return gate.AllowCertified
		}
	}
	return gate.Deny
}

// A pendingVerdict is the verdict on the message that the broker asked about last, with the message.
type pendingVerdict struct {
	set      bool // no MESSAGE event has come for it yet
	publish  gate.Publish
	device   *device
	envelope *envelope.Envelope
	reason   gate.Reason
	detail   error

	memory []byte // holds what publish borrows
}

// keep copies p, so that the verdict is on bytes that nobody else can change. A message longer than maxBytes is refused
// for that, whatever is in it, and not copied.
func (v *pendingVerdict) keep(p *gate.Publish, maxBytes int) {
	*v = pendingVerdict{set: true, publish: *p, memory: v.memory} // and so the reason is Internal until there is another
	if len(p.Payload) > maxBytes {
		return
	}
	m := v.memory[:0]
	m = append(m, p.Payload...)
	m = append(m, p.Topic...)
	m = append(m, p.Identity...)
	m = append(m, p.ClientID...)
	v.memory = m
	take := func(n int) []byte {
		part := m[:n:n]
		m = m[n:]
		return part
	}
	v.publish.Payload = take(len(p.Payload))
	v.publish.Topic = take(len(p.Topic))
	v.publish.Identity = take(len(p.Identity))
	v.publish.ClientID = take(len(p.ClientID))
	v.publish.CommonName = nil // of the certificate, which is not kept
}

// sameMessage reports whether p is the same message on the same topic, whoever reads it.
func (v *pendingVerdict) sameMessage(p *gate.Publish) bool {
	return bytes.Equal(v.publish.Topic, p.Topic) && bytes.Equal(v.publish.Payload, p.Payload)
}

// samePublish reports whether p is the very publish that the verdict is on.
func (v *pendingVerdict) samePublish(p *gate.Publish) bool {
	return v.sameMessage(p) && bytes.Equal(v.publish.Identity, p.Identity) && bytes.Equal(v.publish.ClientID, p.ClientID) &&
		v.publish.QoS == p.QoS && v.publish.Retain == p.Retain
}
