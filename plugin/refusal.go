package plugin

import (
	"errors"
	"fmt"
	"time"

	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/gate"
)

// clockOff is by how many seconds a device's clock is ahead of this host's. It becomes text only if it is logged.
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

// endPending closes the case of a message that Access let pass and Message was not asked about: a last will. It was kept
// from subscribers; that it was sent at all is put right here as far as it can be: its id is used up, and where the
// broker has retained it, that is undone.
func (g *Gateway) endPending() {
	v := &g.pending
	if !v.set {
		return
	}
	v.set = false
	if !v.reason.Good() {
		return
	}
	if v.reason == gate.Redelivered && v.publish.QoS == 2 {
		// Maybe no will, but a question of Mosquitto after 2.0.11, which asks again when a session's client comes back, of
		// what it held for it before the plugin relayed such messages.
		return
	}
	g.refuseWill()
	if v.reason == gate.Accepted {
		g.seen.Insert(v.device.registered.Serial, v.envelope.MessageID, v.envelope.Timestamp, v.device.remember(&v.publish, v.envelope))
	}
	if v.publish.Retain {
		if err := g.host.Publish(downlink.Publish{Topic: string(v.publish.Topic), Retain: true}); err != nil {
			g.log.Error("a retained last will stays where it is", "topic", string(v.publish.Topic), "error", err)
		}
	}
}

// missTicks says in the log, once, that the broker never ticks.
func (g *Gateway) missTicks() {
	if g.ticks > 0 || g.tickless || g.decision.now.Sub(g.started) < 5*time.Second {
		return
	}
	g.tickless = true
	g.log.Warn("the broker never ticks: Mosquitto before 2.0.15 does not with per_listener_settings true. Responses wait " +
		"for the next message, and no client is disconnected for bad signatures; upgrade, or set per_listener_settings false")
}

// refuse says in the log why a publish, a will or a subscription was refused, and takes note of devices that keep
// failing.
func (g *Gateway) refuse(p *gate.Publish, d *device, e *envelope.Envelope, reason gate.Reason, detail error) {
	var messageID []byte
	if e != nil {
		messageID = e.MessageIDText
		if reason == gate.Stale || reason == gate.Future {
			g.clockOff = clockOff(e.Timestamp - g.decision.now.Unix())
			detail = &g.clockOff
		}
	}
	g.figures.verdicts[reason].Add(1)
	if d != nil {
		d.verdicts.add(reason)
	}
	g.notify(p, messageID, reason, detail)
	g.refusals.refused(g.decision.now, p, messageID, reason, detail, g.host.Log)
	g.auditDenial(p, messageID, reason, detail)
	if reason == gate.BadSignature && g.maxBad > 0 && d.bad.add(g.decision.now, g.maxBad) {
		g.offenders.add(p, fmt.Sprintf("for %d bad signatures in a minute ([publish] max_bad_signatures)", g.maxBad))
	}
}

// refuseWill says in the log that a last will was kept from subscribers: once for each will.
func (g *Gateway) refuseWill() {
	if g.pending.detail == errWill {
		return
	}
	g.pending.detail = errWill
	g.refuse(&g.pending.publish, g.pending.device, g.pending.envelope, gate.Forbidden, errWill)
}

var (
	errWill        = errors.New("a last will on a gated topic reaches nobody")
	errOwnTopic    = errors.New("the gateway alone publishes on this topic")
	errOtherIssuer = errors.New("the certificate is signed by none of [publish] issuers; if an intermediate CA signs the devices' certificates, name its certificate there")
	errPublish     = errors.New("a device may publish on its gated topic alone")
)
