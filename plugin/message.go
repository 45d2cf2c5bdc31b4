package plugin

import (
	"errors"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/replay"
)

// Message decides on one publish. A publish to a topic that is neither gated nor the gateway's own is none of its business
// and always routed.
func (g *Gateway) Message(p *gate.Publish) (outcome gate.Disposition) {
	defer func() {
		if v := recover(); v != nil {
			outcome = gate.Refuse
			g.pending.set = false
			g.survived("message", v)
			g.refuse(p, nil, nil, gate.Internal, nil)
		}
	}()
	timing := g.figures.message.Begin()
	defer g.figures.message.End(timing)
	injectFault(p, g.host)
	level, gated := gate.DeviceLevel(g.gated, p.Topic)
	if !gated {
		// Access has refused the gateway's topics already, but is not asked of what a bridge brings.
		if _, own := gate.DeviceLevel(g.own, p.Topic); own {
			g.decision.now = time.Now()
			g.refuse(p, nil, nil, gate.Forbidden, errOwnTopic)
			return gate.Refuse
		}
		return gate.Route
	}
	g.served = served{}
	v := &g.pending
	if !v.set || !v.samePublish(p) {
		g.endPending()
		g.drain()
		g.decide(p, level)
	}
	v.set = false
	if v.reason.Good() && (p.PropertyBytes < 0 || len(p.Payload)+p.PropertyBytes > g.decision.maxBytes) {
		v.reason, v.detail = gate.TooLarge, errProperties
	}
	switch v.reason {
	case gate.Accepted:
		v.reason, v.detail = g.accept(p, v.device, v.envelope)
		if v.reason == gate.Accepted {
			g.figures.verdicts[gate.Accepted].Add(1)
			v.device.verdicts.accept(g.decision.now)
			if p.Retain {
				g.verified.Note(p.Topic, p.Payload)
			}
			if g.relay.takes(p.Topic, p.QoS) {
				g.keepUnsent(p)
				return gate.Relay
			}
			return gate.Route
		}
	case gate.Redelivered:
		g.figures.verdicts[gate.Redelivered].Add(1)
		v.device.verdicts.add(gate.Redelivered)
		g.redelivered(p, v.device, v.envelope)
		return gate.Swallow
	}
	g.refuse(p, v.device, v.envelope, v.reason, v.detail)
	return gate.Refuse
}

// redelivered notes that a message that was accepted before has come again. Subscribers and backend have been given it
// then, so no copy is routed. Once more on this connection would be a replay.
func (g *Gateway) redelivered(p *gate.Publish, d *device, e *envelope.Envelope) {
	d.published(p.ClientID) // after a restart it has not, as far as is known
	g.seen.Update(d.registered.Serial, e.MessageID, d.remember(p, e))
}

// accept remembers the id of a message that has passed every check, stores the message in the journal and hands it over.
// If one of them cannot be done, nothing is: the device may send the message again.
func (g *Gateway) accept(p *gate.Publish, d *device, e *envelope.Envelope) (gate.Reason, error) {
	isAnswer := g.isAnswer(p.Topic)
	if isAnswer {
		if err := g.commands.Admit(d.registered.ID, len(e.Payload)); err != nil {
			return gate.Overloaded, err
		}
	} else if err := g.outbox.Admit(d.registered.ID, len(e.Payload)); err != nil {
		return gate.Overloaded, err
	}
	serial := d.registered.Serial
	switch g.seen.Insert(serial, e.MessageID, e.Timestamp, d.remember(p, e)) {
	case replay.Inserted:
	case replay.Full:
		return gate.Overloaded, errRemembered
	default: // judge has ruled out the others
		return gate.Internal, nil
	}
	stored := false
	defer func() { // after a panic too: what is remembered and not stored would be acknowledged when it comes again
		if !stored {
			g.seen.Remove(serial, e.MessageID)
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
		a.Traceparent = g.host.Traceparent(p.Properties)
	}
	var err error
	if isAnswer {
		err = g.commands.Append(a)
	} else {
		err = g.outbox.Append(a)
	}
	if err != nil {
		g.responses.Drop(d.registered.ID, uuid.UUID(e.MessageID).String())
		return gate.Overloaded, err
	}
	stored = true
	d.published(p.ClientID)
	g.noteSecret(d)
	return gate.Accepted, nil
}

// isAnswer reports whether a gated topic is that of devices' answers to commands.
func (g *Gateway) isAnswer(topic []byte) bool {
	if g.commands == nil {
		return false
	}
	_, is := g.results.Device(topic)
	return is
}

// admitAnswer refuses a good message that is not a device's to send: one with the id of a command, and on the topic of the
// answers to commands, one that is no answer. It would be remembered there and reach no one, and the device's own copy on
// the topic that it is meant for would be in vain.
func (g *Gateway) admitAnswer(p *gate.Publish, e *envelope.Envelope) (gate.Reason, error) {
	if command.IsID(e.MessageID) {
		return gate.Malformed, errCommandID
	}
	if g.isAnswer(p.Topic) {
		if err := command.CheckAnswer(e.Payload); err != nil {
			return gate.Malformed, err
		}
	}
	return gate.Accepted, nil
}

// noteSecret notes which of its secrets a device has signed an accepted message with, if that is news.
func (g *Gateway) noteSecret(d *device) {
	if g.commands == nil || d.signedWith >= len(d.registered.Secrets)-1 { // the oldest is signed with anyway
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
	errProperties = errors.New("with its MQTT 5 properties the message is larger than [publish] max_bytes, or it has more of them than are counted")
	errRemembered = errors.New("as many message ids are remembered as there is room for")
	errCommandID  = errors.New("a message_id of version 8 is a command's")
)
