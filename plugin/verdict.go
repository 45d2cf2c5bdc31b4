package plugin

import (
	"bytes"
	"time"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/replay"
)

// verdicts counts those on the publishes of one device, since the start.
type verdicts struct {
	accepted uint64
	last     int64                     // when one was accepted last, in nanoseconds since 1970; 0: none
	others   *[gate.ReasonCount]uint64 // by reason; nil: none
}

func (v *verdicts) accept(now time.Time) {
	v.accepted++
	v.last = now.UnixNano()
}

// add counts one that was not accepted.
func (v *verdicts) add(reason gate.Reason) {
	if v.others == nil {
		v.others = new([gate.ReasonCount]uint64)
	}
	v.others[reason]++
}

// circumstances is what the verdict on a publish depends on beside the publish itself.
type circumstances struct {
	now       time.Time
	tolerance int64 // how far a timestamp may be from now, in seconds, either way
	maxBytes  int   // the greatest size of a message
	decoder   *envelope.Decoder
	seen      *replay.Set // the message ids accepted before

	userNameIsClientID bool // the broker gives clients their user name for a client id
}

// judge reaches the verdict on a publish to a gated topic: the first check that fails gives the reason. level is the
// topic's device level; d is the registered device of the publish's identity, or nil. It does no I/O and changes nothing
// but the device's token bucket and the hash that it keeps of its last topic.
//
// The envelope is returned as far as it was parsed, for the log; only with Accepted may anything in it be believed. The
// error says more on a message that is malformed.
func judge(p *gate.Publish, level []byte, d *device, c *circumstances) (*envelope.Envelope, gate.Reason, error) {
	if !p.Certified || len(p.Identity) == 0 {
		return nil, gate.NoTLSIdentity, nil
	}
	if p.OtherIssuer {
		return nil, gate.NoTLSIdentity, errOtherIssuer
	}
	if p.OtherCertificate {
		return nil, gate.NoTLSIdentity, errOtherCertificate
	}
	if !bytes.Equal(level, p.Identity) {
		return nil, gate.TopicMismatch, nil
	}
	if d != nil && d.limiter != nil && !d.limiter.AllowN(c.now, 1) {
		return nil, gate.RateLimited, nil
	}
	if len(p.Payload) > c.maxBytes {
		return nil, gate.TooLarge, nil
	}
	e, err := c.decoder.Decode(p.Payload)
	if err != nil {
		return nil, gate.Malformed, err
	}
	if !bytes.Equal(e.DeviceID, p.Identity) {
		return e, gate.IdentityMismatch, nil
	}
	if d == nil {
		return e, gate.UnknownDevice, nil
	}
	if d.registered.Disabled {
		return e, gate.Disabled, nil
	}
	now := c.now.Unix()
	if e.Timestamp > now+c.tolerance {
		return e, gate.Future, nil
	}
	if e.Timestamp < now-c.tolerance || c.seen.Forgotten(e.Timestamp) {
		return e, gate.Stale, nil
	}
	if entry, seen := c.seen.Lookup(d.registered.Serial, e.MessageID); seen {
		if d.redelivers(p, e, entry, c.userNameIsClientID) && d.signed(e) {
			return e, gate.Redelivered, nil
		}
		return e, gate.Replay, nil
	}
	if !d.signed(e) {
		return e, gate.BadSignature, nil
	}
	return e, gate.Accepted, nil
}
