package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// An Outcome is what came of handing a message to the stream.
type Outcome uint8

const (
	// Unknown: the stream may have the message or not. It may be sent again under the same id.
	Unknown Outcome = iota
	// Stored: a majority of the replicas have it on disk, from this attempt or an earlier one.
	Stored
	// Impossible: the stream cannot take it: it is too large, or the stream has another message under its id.
	Impossible
)

const (
	// scanned bounds how many messages of a device one look-up reads.
	scanned = 10_000
	// skew is how far the clocks of gateway and NATS may differ for a look-up.
	skew = time.Minute
)

// A Record is a message on its way into the stream.
type Record struct {
	Device     string
	ID         string // the same at every attempt
	AcceptedAt time.Time
	Header     map[string][]string
	Payload    []byte
}

// Publish makes one attempt to have the stream store a message, of which it keeps nothing. code is JetStream's error, 0 if it
// gave none. The error says what an operator should know; it is nil only with Stored.
func (f *Fleet) Publish(ctx context.Context, r *Record) (o Outcome, status int, err error) {
	s, err := f.open(ctx)
	if err != nil {
		return Unknown, 0, err
	}
	ctx, done := s.during(ctx, f.o.Timeout)
	defer done()
	subject := Subject(f.o.Prefix, f.o.Partitions, r.Device)
	// What was accepted so long ago may have been sent by an attempt whose id NATS is about to forget.
	old := time.Since(r.AcceptedAt) > f.o.Dedup/2
	if old {
		f.lookups.Add(1)
		has, err := f.has(ctx, s.nc, subject, r)
		if err != nil {
			f.failed.Add(1)
			return Unknown, code(err), fmt.Errorf("looking an old message up: %w", f.tell(err))
		}
		if has != nil {
			f.found.Add(1)
			return f.there(has, r)
		}
	}
	m := &nats.Msg{Subject: subject, Header: nats.Header(r.Header), Data: r.Payload}
	m.Header[jetstream.MsgIDHeader] = []string{r.ID}
	ack, err := s.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	switch {
	case err == nil && ack.Stream != StreamName(f.o.Prefix):
		f.failed.Add(1)
		return Unknown, 0, fmt.Errorf("the stream %.64q has acknowledged in place of %s", ack.Stream, StreamName(f.o.Prefix))
	case err == nil:
		if !ack.Duplicate {
			f.searched.stored(r.Device, ack.Sequence, old)
			f.acknowledged(r)
			return Stored, 0, nil
		}
		f.duplicates.Add(1)
		has, err := f.message(ctx, s.nc, map[string]any{"seq": ack.Sequence})
		if err != nil {
			f.failed.Add(1)
			return Unknown, code(err), fmt.Errorf("looking up what has the same id: %w", f.tell(err))
		}
		return f.there(has, r)
	}
	f.failed.Add(1)
	status = code(err)
	// What is not larger than NATS must take is no fault of the message: the limit was lowered after it was checked.
	if (errors.Is(err, nats.ErrMaxPayload) || status == codeTooLarge) && len(r.Payload) > f.o.MaxMessage {
		return Impossible, status, fmt.Errorf("the message of %d bytes is larger than NATS takes (max_payload %d, headers included)", len(r.Payload), s.maxPayload)
	}
	if status != codeFull {
		f.loop.Wake() // the stream may be gone, or changed
	}
	return Unknown, status, f.tell(err)
}

// tell puts an error into words, with what NATS has last said about the connection's rights.
func (f *Fleet) tell(err error) error {
	told := reason(err, f.o.Timeout)
	if p := f.complaint.Load(); p != nil && time.Since(p.at) < time.Minute {
		return fmt.Errorf("%w; NATS says: %s", told, p.text)
	}
	return told
}

// acknowledged counts a message that is stored.
func (f *Fleet) acknowledged(r *Record) {
	f.acks.Add(1)
	f.lag.Store(int64(time.Since(r.AcceptedAt)))
}

// there is the outcome for a message under whose id the stream has one; nil: it had one, which was purged.
func (f *Fleet) there(has *stored, r *Record) (Outcome, int, error) {
	if has != nil && !has.same(r) {
		f.failed.Add(1)
		return Impossible, 0, errors.New("the stream has another message under the same message_id; the device must make a new one for every message")
	}
	f.acknowledged(r)
	return Stored, 0, nil
}

// has returns the message of the stream with the id of r, as the stream's leader knows it: a follower that is cut off answers
// old data without an error. nil: there is none. The last message of the device is the one, unless another gateway has stored
// later ones.
func (f *Fleet) has(ctx context.Context, nc *nats.Conn, subject string, r *Record) (*stored, error) {
	last, err := f.message(ctx, nc, map[string]any{"last_by_subj": subject})
	since := r.AcceptedAt.Add(-skew)
	switch {
	case err != nil || last == nil:
		return nil, err
	case last.id == r.ID:
		return last, nil
	case last.Time.Before(since):
		return nil, nil
	}
	next := map[string]any{"next_by_subj": subject, "start_time": since.UTC()}
	begin, read := f.searched.from(r.Device, r.ID)
	switch {
	case begin == last.Seq:
		return nil, nil
	case begin != 0 && begin < last.Seq: // else the stream was made again
		next = map[string]any{"next_by_subj": subject, "seq": begin + 1}
	default:
		read = 0
	}
	for ; read < scanned; read++ {
		m, err := f.message(ctx, nc, next)
		if err != nil || m == nil {
			return nil, err
		}
		if m.id == r.ID {
			return m, nil
		}
		f.searched.read(r.Device, r.ID, m.Seq, read+1) // a long search goes on at the next attempt
		if m.Seq >= last.Seq {
			return nil, nil
		}
		next = map[string]any{"next_by_subj": subject, "seq": m.Seq + 1}
	}
	return nil, nil // at least once, then
}

// stored is a message of the stream.
type stored struct {
	Seq    uint64    `json:"seq"`
	Header []byte    `json:"hdrs"`
	Data   []byte    `json:"data"`
	Time   time.Time `json:"time"`
	id     string
	fields nats.Header
}

// same reports whether the message is r, of which the traceparent may differ.
func (m *stored) same(r *Record) bool {
	for _, name := range []string{"ce-time", "ce-subject"} {
		if !slices.Equal(m.fields[name], r.Header[name]) {
			return false
		}
	}
	return bytes.Equal(m.Data, r.Payload)
}

// message asks the stream's leader for one message; nil: there is none.
func (f *Fleet) message(ctx context.Context, nc *nats.Conn, which map[string]any) (*stored, error) {
	request, err := json.Marshal(which)
	if err != nil {
		return nil, err
	}
	reply, err := nc.RequestWithContext(ctx, jetstream.DefaultAPIPrefix+"STREAM.MSG.GET."+StreamName(f.o.Prefix), request)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *stored             `json:"message"`
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return nil, errors.New("NATS answered a look-up with something that is not JSON")
	}
	switch m := answer.Message; {
	case answer.Error != nil && answer.Error.ErrorCode == codeNotFound:
		return nil, nil
	case answer.Error != nil:
		return nil, answer.Error
	case m == nil:
		return nil, errors.New("NATS answered a look-up without a message")
	default:
		if len(m.Header) > 0 {
			header, err := nats.DecodeHeadersMsg(m.Header)
			if err != nil {
				return nil, errors.New("NATS answered a look-up with headers that cannot be read")
			}
			m.id, m.fields = header.Get(jetstream.MsgIDHeader), header
		}
		return m, nil
	}
}
