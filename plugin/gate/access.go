package gate

import (
	"time"
)

// Access decides whether a client may do something with a topic. The broker asks before every publish and every last
// will (Write), every subscription and every delivery.
//
// A write to a gated topic gets the whole verdict here, because Message is never called for a last will; for a publish,
// Message follows and finds the verdict ready. A publish and a will look the same here, so what only a publish may do waits
// for Message, and until Message is called a delivery of the same message is denied: see read.
func (g *Gate) Access(action Action, p *Publish) (decision Decision) {
	defer func() {
		if v := recover(); v != nil {
			decision = Deny
			g.pending.set = false
			g.panics.Report("access", v)
			g.refuse(p, nil, nil, Internal, nil)
		}
	}()
	g.retained.served = served{}
	switch action {
	case Read:
		return g.read(p)
	case Write:
		timing := g.figures.access.Begin()
		decision = g.write(p)
		g.figures.access.End(timing)
		return decision
	case Subscribe:
		return g.subscribe(p)
	case Unsubscribe:
		return g.unsubscribe(p)
	default:
		return Deny
	}
}

// write decides on a publish or a last will.
func (g *Gate) write(p *Publish) Decision {
	g.endPending()
	g.beforePublish()
	if g.clientIDs.foreign(p) {
		g.refuseForeign(p)
		return Deny
	}
	if p.OtherIssuer && !g.clock.hasDeparted(p) {
		g.expelImpostor(p)
	}
	level, gated := g.topics.Gated(p.Topic)
	if !gated {
		// Only the gateway publishes on its own topics, and a device only on gated ones.
		if _, own := g.topics.Own(p.Topic); own {
			g.forbid(p, errOwnTopic)
			return Deny
		}
		switch g.confinement.of(p) {
		case ofOthers:
			g.clientIDs.note(p)
			return NotConcerned
		case ofDevice:
			g.forbid(p, errPublish)
		default:
			g.forbid(p, errUnknownCertificate)
		}
		return Deny
	}
	if g.clock.hasDeparted(p) {
		g.forbid(p, errWill)
		return Deny
	}
	g.decide(p, level)
	if g.pending.reason.Good() {
		return Allow
	}
	g.pending.set = false
	g.refuse(p, g.pending.device, g.pending.envelope, g.pending.reason, g.pending.detail)
	return Deny
}

// forbid refuses what a client does with a topic that it may not use.
func (g *Gate) forbid(p *Publish, detail error) {
	g.decision.now = time.Now()
	g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, Forbidden, detail)
}

// decide makes the decision on a publish to a gated topic and leaves the verdict in g.pending.
func (g *Gate) decide(p *Publish, level []byte) {
	g.decision.now = time.Now()
	g.clock.missTicks(g.decision.now, g.log)
	g.expire(g.decision.now, expirePerMessage)
	v := &g.pending
	v.keep(p, g.decision.maxBytes)
	registered := g.registry.Lookup(p.Identity)
	v.device = g.devices.of(registered)
	v.publish.OtherCertificate = g.otherCertificate(p, registered)
	v.envelope, v.reason, v.detail = judge(&v.publish, level, v.device, &g.decision)
	if v.reason == Accepted {
		v.reason, v.detail = g.admitAnswer(&v.publish, v.envelope)
	}
}

// read decides on a delivery. It is called for every subscriber of every message, so it does little.
func (g *Gate) read(p *Publish) Decision {
	if level, gated := g.topics.Gated(p.Topic); gated {
		if len(p.Payload) == 0 {
			return Deny // not an envelope, but the gateway's own message that removes a retained will
		}
		if g.pending.set && g.pending.sameMessage(p) {
			// Access was called for the write and Message was not, and now it is being delivered: a last will.
			g.refuseWill()
			return Deny
		}
		if p.Retain {
			if !g.mayServe(p, level) {
				return Deny
			}
			g.retained.served.note(p)
		}
	} else if _, own := g.topics.Own(p.Topic); own && p.Retain {
		return Deny // retained before the plugin was installed: with the plugin nothing is retained there
	}
	if g.sessions.answers(p) {
		return Deny
	}
	if g.clientIDs.foreign(p) {
		return Deny // it has taken over the session, and must not read the messages that wait in it
	}
	switch g.confinement.of(p) {
	case ofOthers:
		return NotConcerned
	case ofDevice:
		if d := g.registry.Lookup(p.Identity); d != nil && d.Disabled {
			return Deny
		}
		return g.ownTopic(p)
	default:
		return Deny
	}
}

// ownTopic decides whether a device may receive what is published to a topic. A client that uses the name without the
// certificate, as a device does whose session outlives its connection, gets NotConcerned: others decide.
func (g *Gate) ownTopic(p *Publish) Decision {
	if g.topics.isOwnOf(p) {
		if d := g.registry.Lookup(p.Identity); d != nil && !g.otherCertificate(p, d) {
			return AllowCertified
		}
	}
	return Deny
}
