package plugin

import (
	"bytes"
	"errors"
	"time"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/replay"
)

// An Outcome is what the broker is to do with a publish. The zero value is Refuse.
type Outcome int

// The outcomes.
const (
	Refuse  Outcome = iota // tell the publisher no, and route it to nobody
	Route                  // tell the publisher yes, and route it as it is
	Relay                  // tell the publisher yes, route it to nobody, and publish a copy of it in the gateway's name
	Swallow                // tell the publisher yes, and route it to nobody
)

// Message decides on one publish. A publish to a topic that is neither gated nor the gateway's own is none of its business
// and always routed.
func (g *Gateway) Message(p *Publish) (outcome Outcome) {
	defer func() {
		if v := recover(); v != nil {
			outcome = Refuse
			g.pending.set = false
			g.survived("message", v)
			g.refuse(p, nil, nil, Internal, nil)
		}
	}()
	timing := g.figures.message.Begin()
	defer g.figures.message.End(timing)
	injectFault(p, g.host)
	level, gated := deviceLevel(g.gated, p.Topic)
	if !gated {
		// Access has refused the gateway's topics already, but is not asked of what a bridge brings.
		if _, own := deviceLevel(g.own, p.Topic); own {
			g.decision.now = time.Now()
			g.refuse(p, nil, nil, Forbidden, errOwnTopic)
			return Refuse
		}
		return Route
	}
	g.served = served{}
	v := &g.pending
	if !v.set || !v.samePublish(p) {
		g.endPending()
		g.drain()
		g.decide(p, level)
	}
	v.set = false
	if v.reason.good() && (p.PropertyBytes < 0 || len(p.Payload)+p.PropertyBytes > g.decision.maxBytes) {
		v.reason, v.detail = TooLarge, errProperties
	}
	switch v.reason {
	case Accepted:
		v.reason, v.detail = g.accept(p, v.device, v.envelope)
		if v.reason == Accepted {
			g.figures.verdicts[Accepted].Add(1)
			v.device.verdicts.accept(g.decision.now)
			if p.Retain {
				g.verified.Note(p.Topic, p.Payload)
			}
			if g.relay.takes(p.Topic, p.QoS) {
				g.keepUnsent(p)
				return Relay
			}
			return Route
		}
	case Redelivered:
		g.figures.verdicts[Redelivered].Add(1)
		v.device.verdicts.add(Redelivered)
		g.redelivered(p, v.device, v.envelope)
		return Swallow
	}
	g.refuse(p, v.device, v.envelope, v.reason, v.detail)
	return Refuse
}

// redelivered notes that a message that was accepted before has come again. Subscribers and backend have been given it
// then, so no copy is routed. Once more on this connection would be a replay.
func (g *Gateway) redelivered(p *Publish, d *device, e *envelope.Envelope) {
	d.published(p.ClientID) // after a restart it has not, as far as is known
	g.seen.Update(d.registered.Serial, e.MessageID, d.remember(p, e))
}

// accept remembers the id of a message that has passed every check, stores the message in the journal and hands it over.
// If one of them cannot be done, nothing is: the device may send the message again.
func (g *Gateway) accept(p *Publish, d *device, e *envelope.Envelope) (Reason, error) {
	isAnswer := g.commands.isAnswer(p.Topic)
	if isAnswer {
		if !g.commands.store.HasRoom(len(e.Payload)) {
			return Overloaded, errAnswers
		}
	} else if err := g.forwarder.Admit(d.registered.ID); err != nil {
		return Overloaded, err
	}
	serial := d.registered.Serial
	switch g.seen.Insert(serial, e.MessageID, e.Timestamp, d.remember(p, e)) {
	case replay.Inserted:
	case replay.Full:
		return Overloaded, errRemembered
	default: // judge has ruled out the others
		return Internal, nil
	}
	stored := false
	defer func() { // after a panic too: what is remembered and not stored would be acknowledged when it comes again
		if !stored {
			g.seen.Remove(serial, e.MessageID)
		}
	}()
	if !isAnswer && len(p.Correlation)+len(p.ResponseTopic) > 0 {
		g.keepContext(p, d.registered.ID, uuidText(e.MessageID))
	}
	a := &g.record
	*a = journal.Accepted{
		Device:     d.registered.ID,
		MessageID:  e.MessageID,
		Tag:        d.tag(p, e),
		TopicHash:  [8]byte(d.topic.hash[:8]),
		QoS:        p.QoS,
		Retain:     p.Retain,
		Timestamp:  e.Timestamp,
		AcceptedAt: g.decision.now,
		Topic:      p.Topic,
		Payload:    e.Payload,
		Client:     hashClient(p.ClientID),
	}
	if p.Properties != nil {
		a.Traceparent = g.host.Traceparent(p.Properties)
	}
	pos, err := g.journal.Append(a)
	if err != nil {
		g.contexts.take(contextKey{d.registered.ID, uuidText(e.MessageID)})
		return Overloaded, err
	}
	stored = true
	d.published(p.ClientID)
	g.noteSecret(d)
	if isAnswer {
		// There is room, as seen above: nobody else fills it.
		g.commands.take(journaledAnswer{pos, a.Device, bytes.Clone(a.Payload), a.AcceptedAt})
		return Accepted, nil
	}
	g.forwarder.Enqueue(a.Device, uint64(pos), a.Size())
	if g.ticks == 0 {
		g.forwarder.Dispatch()
	}
	return Accepted, nil
}

var (
	errProperties = errors.New("with its MQTT 5 properties the message is larger than [publish] max_bytes, or it has more of them than are counted")
	errRemembered = errors.New("as many message ids are remembered as there is room for")
	errAnswers    = errors.New("too many answers to commands wait to be stored")
)
