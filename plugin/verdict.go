package plugin

import (
	"bytes"
	"time"
	"unsafe"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/replay"
)

// A Reason is why a publish was refused, or Accepted or Redelivered. The zero value is Internal: what was never decided is refused.
type Reason uint8

// The reasons, in the order in which they are looked for.
const (
	Internal Reason = iota // anything unexpected; always a refusal
	NoTLSIdentity
	TopicMismatch
	RateLimited
	TooLarge
	Malformed
	IdentityMismatch
	UnknownDevice
	Disabled
	Stale
	Future
	Replay
	BadSignature
	Overloaded    // the message is good, but there is no room to remember or to keep it
	ForeignClient // the client id is another identity's
	Forbidden     // a topic with which the client has no business, gated or not
	Accepted
	Redelivered // accepted before, and here again because the acknowledgement was lost: acknowledged, and no more
	reasonCount
)

// String returns the reason's stable name.
func (r Reason) String() string {
	if r >= reasonCount {
		r = Internal
	}
	return reasons[r].name
}

// verdicts counts those on the publishes of one device, since the start.
type verdicts struct {
	accepted uint64
	last     int64                // when one was accepted last, in nanoseconds since 1970; 0: none
	others   *[reasonCount]uint64 // by reason; nil: none
}

func (v *verdicts) accept(now time.Time) {
	v.accepted++
	v.last = now.UnixNano()
}

// add counts one that was not accepted.
func (v *verdicts) add(reason Reason) {
	if v.others == nil {
		v.others = new([reasonCount]uint64)
	}
	v.others[reason]++
}

// good reports whether the publisher is told success.
func (r Reason) good() bool { return r == Accepted || r == Redelivered }

// A Publish is one message as the broker presents it. Its slices are borrowed from the broker for the length of a
// call.
type Publish struct {
	// Identity is the user name that the broker took from the client's certificate; empty without one.
	Identity []byte
	// Certified reports whether the client presented a certificate whose common name is Identity.
	Certified bool
	// Presented reports whether the client presented any certificate, and CommonName is the common name of that; nil where
	// there is none that is text. Of a Read they are told only with StrangersByCertificate.
	Presented  bool
	CommonName []byte
	// OtherCertificate reports that certificates are pinned for the device, and that the client's is none of them. The
	// gateway finds it out itself.
	OtherCertificate bool
	// OtherIssuer reports that [publish] issuers are set and that none of them has signed the certificate that the client
	// presented.
	OtherIssuer bool
	// Subscriptions is the length of the broker's list of the session's subscriptions, which never shrinks. Only Subscribe
	// and Unsubscribe are told it.
	Subscriptions int
	// ClientID is the client's MQTT client id.
	ClientID []byte
	// Topic is the topic as the broker will route it, a listener's mount point included.
	Topic []byte
	// Payload is the message.
	Payload []byte
	// QoS is 0, 1 or 2.
	QoS byte
	// Retain asks the broker to keep the message for later subscribers.
	Retain bool
	// Connection tells connections apart that exist at the same time. The broker uses a number again for another one.
	Connection uintptr
	// Properties are the broker's MQTT 5 properties of the message, for Host alone; nil: there are none. Only Message is
	// given them.
	Properties unsafe.Pointer
	// PropertyBytes is how many bytes Properties take in a packet; less than 0: more of them than are counted, or nothing
	// can count them.
	PropertyBytes int
	// Correlation and ResponseTopic are MQTT 5's, of a request for a response; nil without. Access is not told them.
	Correlation, ResponseTopic []byte
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
		if d.redelivers(p, e, entry, c.userNameIsClientID) && d.signed(e) {
			return e, Redelivered, nil
		}
		return e, Replay, nil
	}
	if !d.signed(e) {
		return e, BadSignature, nil
	}
	return e, Accepted, nil
}
