package gate

import (
	"errors"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/replay"
)

// Message decides on one publish. A publish to a topic that is neither gated nor the gateway's own is always routed.
func (g *Gate) Message(p *Publish) (disposition Disposition) {
	defer func() {
		if v := recover(); v != nil {
			disposition = Refuse
			g.pending.set = false
			g.panics.Report("message", v)
			g.refuse(p, nil, nil, Internal, nil)
		}
	}()
	timing := g.figures.message.Begin()
	defer g.figures.message.End(timing)
	injectFault(p, g.broker)
	level, gated := g.topics.Gated(p.Topic)
	if !gated {
		// Access has refused publishes to the gateway's topics already, but the broker does not call it for what a bridge brings.
		if _, own := g.topics.Own(p.Topic); own {
			g.decision.now = time.Now()
			g.refuse(p, nil, nil, Forbidden, errOwnTopic)
			return Refuse
		}
		return Route
	}
	g.retained.served = served{}
	v := &g.pending
	if !v.set || !v.samePublish(p) {
		g.endPending()
		g.beforePublish()
		g.decide(p, level)
	}
	v.set = false
	if v.reason.Good() && (p.PropertyBytes < 0 || len(p.Payload)+p.PropertyBytes > g.decision.maxBytes) {
		v.reason, v.detail = TooLarge, errProperties
	}
	switch v.reason {
	case Accepted:
		v.reason, v.detail = g.accept(p, v.device, v.envelope)
		if v.reason == Accepted {
			g.figures.verdicts[Accepted].Add(1)
			v.device.verdicts.accept(g.decision.now)
			if p.Retain {
				g.retained.verified.Note(p.Topic, p.Payload)
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

// redelivered notes that a message that was accepted before has come again. Subscribers and backend got the first copy, so
// this one is not routed. Another copy on this connection would be a replay.
func (g *Gate) redelivered(p *Publish, d *device, e *envelope.Envelope) {
	d.published(p.ClientID) // after a restart the gate does not know that it has
	g.decision.seen.Update(d.registered.Serial, e.MessageID, d.remember(p, e))
}

// accept remembers the id of a message that has passed every check, and stores the message in the journal. If one of these
// steps fails, nothing is kept: the device may send the message again.
func (g *Gate) accept(p *Publish, d *device, e *envelope.Envelope) (Reason, error) {
	isAnswer := g.topics.isAnswer(p.Topic)
	to := g.outbox
	if isAnswer {
		to = g.commands
	}
	if err := to.Admit(d.registered.ID, len(e.Payload)); err != nil {
		return Overloaded, err
	}
	serial := d.registered.Serial
	switch g.decision.seen.Insert(serial, e.MessageID, e.Timestamp, d.remember(p, e)) {
	case replay.Inserted:
	case replay.Full:
		return Overloaded, errRemembered
	default: // judge has excluded the others
		return Internal, nil
	}
	stored := false
	defer func() { // after a panic too: a message that is remembered but not stored would be acknowledged when it comes again
		if !stored {
			g.decision.seen.Remove(serial, e.MessageID)
		}
	}()
	if !isAnswer && len(p.Correlation)+len(p.ResponseTopic) > 0 {
		g.responses.Keep(d.registered.ID, uuid.UUID(e.MessageID).String(), p.Correlation, p.ResponseTopic)
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
		a.Traceparent = g.broker.Traceparent(p.Properties)
	}
	if err := to.Append(a); err != nil {
		g.responses.Drop(d.registered.ID, uuid.UUID(e.MessageID).String())
		return Overloaded, err
	}
	stored = true
	d.published(p.ClientID)
	g.noteSecret(d)
	return Accepted, nil
}

// admitAnswer refuses a good message that a device must not send: one with the id of a command, and on the topic of the
// answers to commands, one that is not an answer. It would be remembered there and not delivered, and when the device sends
// it on the right topic, it would be refused as a replay.
func (g *Gate) admitAnswer(p *Publish, e *envelope.Envelope) (Reason, error) {
	if command.IsID(e.MessageID) {
		return Malformed, errCommandID
	}
	if g.topics.isAnswer(p.Topic) {
		if err := command.CheckAnswer(e.Payload); err != nil {
			return Malformed, err
		}
	}
	return Accepted, nil
}

// noteSecret notes which of its secrets or public keys a device has signed an accepted message with, if it has not been noted before.
func (g *Gate) noteSecret(d *device) {
	if g.commands == nil || d.signedWith >= len(d.verifiers)-1 { // the oldest is signed with anyway
		return
	}
	if d.noted == d.registered && d.signedWith >= d.notedSecret {
		return
	}
	if g.commands.Used(d.registered, d.signedWith) {
		d.noted, d.notedSecret = d.registered, d.signedWith
	}
}

var (
	errProperties = errors.New("with its MQTT 5 properties the message is larger than [publish] max_bytes, or it has too many properties")
	errRemembered = errors.New("the memory for message ids is full")
	errCommandID  = errors.New("message_id is a UUID of version 8, which only commands have")
)
