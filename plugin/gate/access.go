package gate

import (
	"time"
)

// Access decides whether a client may do something with a topic. The broker asks before every publish and every last
// will (Write), every subscription and every delivery.
//
// A write to a gated topic gets the whole verdict here, since a last will is never put to Message; for a publish Message
// follows and finds the verdict ready. The two cannot be told apart here, so what only a publish may do waits for
// Message, and until that has been called a delivery of the same message is denied: see read.
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
	g.round()
	if g.clientIDs.foreign(p) {
		g.refuseForeign(p)
		return Deny
	}
	if p.OtherIssuer && !g.clock.hasDeparted(p) {
		g.expelImpostor(p)
	}
	level, gated := g.topics.Gated(p.Topic)
	if !gated {
		// The topics of the gateway are its own, and a device has no others to publish to.
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

// forbid says in the log that a client has no business with a topic.
func (g *Gate) forbid(p *Publish, detail error) {
	g.decision.now = time.Now()
	g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, Forbidden, detail)
}

// decide reaches the verdict on a publish to a gated topic and leaves it in g.pending.
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

// read decides on a delivery. It is asked for every subscriber of every message, so it does little.
func (g *Gate) read(p *Publish) Decision {
	if level, gated := g.topics.Gated(p.Topic); gated {
		if len(p.Payload) == 0 {
			return Deny // no envelope: the gateway's own, by which a retained will is removed
		}
		if g.pending.set && g.pending.sameMessage(p) {
			// Access was asked to write it and Message was not called, and now it is being delivered: a last will.
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
		return Deny // put there before the plugin came: it lets nobody retain anything there, and retains nothing itself
	}
	if g.sessions.answers(p) {
		return Deny
	}
	if g.clientIDs.foreign(p) {
		return Deny // it has taken over the session, and what waits in it is not for it to read
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

// ownTopic decides on a device's wish to have what is published to a topic. Who bears the name without the certificate,
// as a device does whose session outlives its connection, has no claim of his own: others decide.
func (g *Gate) ownTopic(p *Publish) Decision {
	if g.topics.isOwnOf(p) {
		if d := g.registry.Lookup(p.Identity); d != nil && !g.otherCertificate(p, d) {
			return AllowCertified
		}
	}
	return Deny
}
