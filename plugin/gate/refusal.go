package gate

import (
	"bytes"
	"errors"
	"fmt"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/mqtt"
)

// clockOff is how many seconds a device's clock is ahead of this host's. It becomes text only if it is logged.
type clockOff int64

func (c *clockOff) Error() string {
	switch off := *c; {
	case off > 1e11:
		return "the timestamp is far ahead of this host's clock: is it in milliseconds?"
	case off > 0:
		return fmt.Sprintf("the timestamp is %d s ahead of this host's clock", off)
	default:
		return fmt.Sprintf("the timestamp is %d s behind this host's clock", -off)
	}
}

// endPending handles a message that Access allowed and for which Message was not called: a last will. It was not delivered to
// subscribers. Here its id is marked as used, and where the broker has retained the will, it is removed.
func (g *Gate) endPending() {
	v := &g.pending
	if !v.set {
		return
	}
	v.set = false
	if !v.reason.Good() {
		return
	}
	if v.reason == Redelivered && v.publish.QoS == 2 {
		// This may not be a will. When a session's client reconnects, Mosquitto after 2.0.11 asks again about messages that it
		// held for the session before the plugin relayed such messages.
		return
	}
	g.refuseWill()
	if v.reason == Accepted {
		g.decision.seen.Insert(v.device.registered.Serial, v.envelope.MessageID, v.envelope.Timestamp, v.device.remember(&v.publish, v.envelope))
	}
	if v.publish.Retain {
		if err := g.broker.Publish(mqtt.Message{Topic: string(v.publish.Topic), Retain: true}); err != nil {
			g.log.Error("a retained last will could not be removed from the broker", "topic", string(v.publish.Topic), "error", err)
		}
	}
}

// refusals is what the consequences of a refusal need.
type refusals struct {
	log      refusalLog
	audit    *audit.Log // nil: none
	clockOff clockOff
	maxBad   int // bad signatures of a device in a minute; 0: any number
}

// refuse counts a refusal, logs why a publish, a will or a subscription was refused, and takes note of devices that keep
// failing.
func (g *Gate) refuse(p *Publish, d *device, e *envelope.Envelope, reason Reason, detail error) {
	var messageID []byte
	if e != nil {
		messageID = e.MessageIDText
		if reason == Stale || reason == Future {
			g.refusals.clockOff = clockOff(e.Timestamp - g.decision.now.Unix())
			detail = &g.refusals.clockOff
		}
	}
	g.figures.verdicts[reason].Add(1)
	if d != nil {
		d.verdicts.add(reason)
	}
	g.notify(p, messageID, reason, detail)
	g.refusals.log.refused(g.decision.now, p, messageID, reason, detail, g.broker.Log)
	g.auditDenial(p, messageID, reason, detail)
	if reason == BadSignature && g.refusals.maxBad > 0 && d.bad.add(g.decision.now, g.refusals.maxBad) {
		g.offenders.add(p, fmt.Sprintf("for %d bad signatures in a minute ([publish] max_bad_signatures)", g.refusals.maxBad))
	}
}

// auditDenial records a refusal.
func (g *Gate) auditDenial(p *Publish, messageID []byte, reason Reason, detail error) {
	if g.refusals.audit == nil || !g.refusals.audit.Sample(g.decision.now, reason.String()) {
		return
	}
	r := audit.Record{
		Time:      g.decision.now,
		Event:     audit.Denied,
		Device:    string(cut(p.Identity, 64)),
		Client:    string(bytes.ToValidUTF8(cut(p.ClientID, 64), []byte("?"))),
		Topic:     string(cut(p.Topic, 128)),
		MessageID: string(cut(messageID, 64)),
		Reason:    reason.String(),
	}
	if detail != nil {
		r.Detail = detail.Error()
	}
	g.refusals.audit.Add(r)
}

// refuseWill logs that a last will was not delivered to subscribers: once for each will.
func (g *Gate) refuseWill() {
	if g.pending.detail == errWill {
		return
	}
	g.pending.detail = errWill
	g.refuse(&g.pending.publish, g.pending.device, g.pending.envelope, Forbidden, errWill)
}

var (
	errWill        = errors.New("a last will on a gated topic is not delivered")
	errOwnTopic    = errors.New("only the gateway publishes on this topic")
	errOtherIssuer = errors.New("the certificate is not signed by any of [publish] issuers; if an intermediate CA signs the devices' certificates, name its certificate there")
	errPublish     = errors.New("a device may publish only on its gated topics")
)
