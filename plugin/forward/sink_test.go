package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// fake is a Sink, also on synthetic time, that says what an HTTP backend would say.
type fake struct {
	perDevice bool // each device has an address of its own
	reply     func(ms []Message) reply
}

// reply is what a backend answers, as a webhook understands it.
type reply struct {
	status      int // 0: there is none
	err         error
	retryAfter  time.Duration
	body        []byte
	contentType string
	unusable    string
	excerpt     string
	misread     bool
}

func (f *fake) Send(_ context.Context, b *Batch) Result {
	ms := slices.Clone(b.Messages)
	for i := range ms {
		ms[i].Payload = slices.Clone(ms[i].Payload)
	}
	r := f.reply(ms)
	result := Result{Meaning: r.meaning(), Status: r.status, Err: r.err, RetryAfter: r.retryAfter, Body: r.body,
		ContentType: r.contentType, Unusable: r.unusable, Excerpt: r.excerpt, Address: "http://backend/in", Advice: "check it"}
	if f.perDevice {
		result.OwnAddress = true
		if result.Address = "http://backend/{device_id}"; result.Meaning == Gone {
			result.Address = "http://backend/" + ms[0].DeviceID
		}
	}
	return result
}

func (r *reply) meaning() Meaning {
	switch success := r.status/100 == 2; {
	case r.misread && success:
		return Unreadable
	case r.misread:
		return Garbled
	case success:
		return Taken
	case r.status == 410:
		return Gone
	case r.status == 401, r.status == 405, r.status == 407:
		return RefusesAll
	case r.status == 403, r.status == 404, r.status/100 == 3:
		return Doubtful
	case r.status == 425, r.status == 429:
		return Busy
	case r.status == 408, r.status/100 != 4:
		if op, is := errors.AsType[*net.OpError](r.err); is && op.Op == "dial" {
			return Busy
		}
		return Failed
	}
	return Refused
}

// one makes a sink of what one message is answered with.
func one(f func(m *Message) reply) *fake {
	return &fake{perDevice: true, reply: func(ms []Message) reply {
		if len(ms) != 1 {
			panic(fmt.Sprint(len(ms), " messages in a request"))
		}
		return f(&ms[0])
	}}
}

func with(f func(m *Message) reply) Config {
	return Config{Sink: one(f)}
}
