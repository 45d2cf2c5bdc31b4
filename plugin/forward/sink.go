package forward

import (
	"context"
	"time"
)

// A Sink is where messages go: an HTTP backend (package webhook), a file, another queue. It makes one attempt at a time and
// says what came of it; the Forwarder does the rest: order, back-off, circuit breaker, dead letters.
//
// Two forms were considered. In the other one each worker had a sink of its own with the methods Pack and Send, so that
// a sink could encode one message after the other and say when a request is full. This one has one method and no state
// between two calls; the price is that a worker keeps a batch in memory twice, which Forwarder bounds.
type Sink interface {
	// Send makes one attempt to hand over all messages of b, in their order. Several workers call it at a time. It must
	// bound the attempt itself, and return soon once ctx is done, which is the same one for all calls of a Forwarder. It
	// must not keep b. A panic counts as a failure.
	Send(ctx context.Context, b *Batch) Result
}

// Batch is what goes in one request: one message, or with Config.Batch several, perhaps of different devices.
type Batch struct {
	Messages []Message // at least one; the Forwarder's again when Send returns
}

// Result is what came of one attempt. The zero value stands for a failure after which the messages are sent again.
type Result struct {
	Meaning Meaning
	// Status is the sink's own code for the response, 0 if there was none. Operators see it, and dead letters and
	// metrics keep it; the Forwarder decides nothing by it.
	Status int
	Err    error // what went wrong, for the log, without secrets; nil if the response is complete
	// RetryAfter is the least time until the next attempt, 0 if the backend gave none.
	RetryAfter time.Duration

	// Body is what the device gets for an answer, nil for nothing, and belongs to the receiver. ContentType is its
	// type, "" if unknown. Unusable says why there is no Body though the backend sent one. All three are for requests
	// with one message that were Taken.
	Body        []byte
	ContentType string
	Unusable    string
	Latency     time.Duration // from sending to the end of the response

	// Excerpt is what the backend said to a refusal: valid UTF-8, at most 1 KiB. The dead letter keeps it.
	Excerpt string
	// Advice says what to check when the backend refuses everything so.
	Advice string
	// Address is where the request went, for operators, without secrets: set it if the Meaning is Doubtful, RefusesAll
	// or Gone.
	Address string
	// OwnAddress says that each device has an address of its own: Gone is then only about the device.
	OwnAddress bool
}

// Meaning is what one attempt says about its messages.
type Meaning uint8

const (
	// Failed: the backend may take the messages yet, and one of them may be why it did not.
	Failed Meaning = iota
	// Busy is Failed for a reason that has nothing to do with the messages: no connection, or too many requests.
	Busy
	// Unreadable: the backend says that it has the messages, but its response cannot be read to the end.
	Unreadable
	// Garbled: something responded, but not in the sink's protocol. It may not be the backend.
	Garbled
	// Taken: the backend has the messages.
	Taken
	// Refused: this message will never be taken.
	Refused
	// Doubtful: either the message or the backend is at fault: see standing.
	Doubtful
	// RefusesAll: the backend refuses whatever it is sent.
	RefusesAll
	// Gone: nothing is to be sent to the address before an operator resumes it.
	Gone
)

// heard reports whether the backend has spoken about the messages: taken or refused them.
func (m Meaning) heard() bool { return m >= Taken && m <= Gone }

const (
	// maxBatchBytes bounds a request with more than one message, as sent: a worker keeps as much memory, and servers
	// limit what they take.
	maxBatchBytes = 256 << 10
	// envelopeBytes is more than a message takes in a batch in addition to its content.
	envelopeBytes = 290
)

// weight is about how much a message takes in a batch, and no less.
func (m *Message) weight() int {
	return len(m.Payload) + 2*len(m.Topic) + 2*len(m.DeviceID) + envelopeBytes
}

// reset prepares the batch for other messages. The memory of theirs is kept, but for that of unusually large ones.
func (b *Batch) reset() {
	kept := 0
	all := b.Messages[:cap(b.Messages)]
	for i := range all {
		if kept += cap(all[i].Payload); i > 0 && kept > 2*maxBatchBytes {
			all[i].Payload = nil
		}
	}
	b.Messages = b.Messages[:0]
}

// next returns a message of the device behind the others, to be loaded. It counts once add is called.
func (b *Batch) next(device string) *Message {
	n := len(b.Messages)
	if n == cap(b.Messages) {
		b.Messages = append(b.Messages, Message{})[:n]
	}
	m := &b.Messages[:n+1][n]
	*m = Message{DeviceID: device, Topic: m.Topic, Payload: m.Payload[:0]}
	return m
}

func (b *Batch) add() { b.Messages = b.Messages[:len(b.Messages)+1] }
