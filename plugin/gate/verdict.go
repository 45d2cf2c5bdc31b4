package gate

import (
	"bytes"
	"errors"
	"time"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/replay"
)

// circumstances is what the verdict on a publish depends on, in addition to the publish itself.
type circumstances struct {
	now       time.Time
	tolerance int64 // how far a timestamp may be from now, in seconds, either way
	maxBytes  int   // the largest size of a message
	decoder   *envelope.Decoder
	seen      *replay.Set // the message ids accepted before
	keys      keyBudget

	userNameIsClientID bool // the broker uses the user name of a client as its client id
}

// judge returns the verdict on a publish to a gated topic: the first check that fails gives the reason. level is the
// topic's device level; d is the registered device of the publish's identity, or nil. It does no I/O and changes nothing
// except the device's token bucket, the stored hash of the device's last topic, and the count of what failed verifications of
// public keys have taken.
//
// The envelope is returned as far as it was parsed, for the log; its contents can be trusted only with Accepted. The error
// says more about a malformed message.
func judge(p *Publish, level []byte, d *device, c *circumstances) (*envelope.Envelope, Reason, error) {
	if !p.Certified || len(p.Identity) == 0 {
		return nil, NoTLSIdentity, nil
	}
	if p.OtherIssuer {
		return nil, NoTLSIdentity, errOtherIssuer
	}
	if p.OtherCertificate {
		return nil, NoTLSIdentity, errOtherCertificate
	}
	if !bytes.Equal(level, p.Identity) {
		return nil, TopicMismatch, nil
	}
	if d != nil && d.limiter != nil && !d.limiter.AllowN(c.now, 1) {
		return nil, RateLimited, nil
	}
	if len(p.Payload) > c.maxBytes {
		return nil, TooLarge, nil
	}
	e, err := c.decoder.Decode(p.Payload)
	if err != nil {
		return nil, Malformed, err
	}
	if !bytes.Equal(e.DeviceID, p.Identity) {
		return e, IdentityMismatch, nil
	}
	if d == nil {
		return e, UnknownDevice, nil
	}
	if d.registered.Disabled {
		return e, Disabled, nil
	}
	now := c.now.Unix()
	if e.Timestamp > now+c.tolerance {
		return e, Future, nil
	}
	if e.Timestamp < now-c.tolerance || c.seen.Forgotten(e.Timestamp) {
		return e, Stale, nil
	}
	if entry, seen := c.seen.Lookup(d.registered.Serial, e.MessageID); seen {
		if d.redelivers(p, e, entry, c.userNameIsClientID) {
			switch good, limited := c.signed(d, e); {
			case limited:
				return e, RateLimited, errBadSignatures
			case good:
				return e, Redelivered, nil
			}
		}
		return e, Replay, nil
	}
	switch good, limited := c.signed(d, e); {
	case limited:
		return e, RateLimited, errBadSignatures
	case !good:
		return e, BadSignature, nil
	}
	return e, Accepted, nil
}

var errBadSignatures = errors.New("too many bad signatures: of this device in this minute ([publish] max_bad_signatures), or of all devices with public keys; not verified")
