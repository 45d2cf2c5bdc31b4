package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
)

const (
	// letterTimeout bounds the storing of one dead letter, so that Close does not wait for a database longer than it may.
	letterTimeout = 3 * time.Second
	// maxReadBuffer is the capacity that is kept of a buffer that a message was read into.
	maxReadBuffer = 256 << 10
)

// messages is the forward.Store: the messages are in the journal, and those that are given up become letters in SQLite. The
// forwarder's workers call it.
type messages struct {
	journal *journal.Journal
	letters *deadletter.Store
	reads   sync.Pool // of *reading
}

// A reading is what a message is read into.
type reading struct {
	journal.Accepted
	buf []byte
}

func newMessages() *messages {
	return &messages{reads: sync.Pool{New: func() any { return new(reading) }}}
}

// read reads the message at pos; the caller gives the reading back with done.
func (s *messages) read(pos uint64) (r *reading, err error) {
	r = s.reads.Get().(*reading)
	r.buf, err = s.journal.Read(journal.Position(pos), &r.Accepted, r.buf)
	if errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrNotFound) {
		err = fmt.Errorf("%w: %w", forward.ErrUnreadable, err)
	}
	return r, err
}

func (s *messages) done(r *reading) {
	if cap(r.buf) > maxReadBuffer {
		r.buf = nil
	}
	s.reads.Put(r)
}

// Load is forward.Store's.
func (s *messages) Load(pos uint64, m *forward.Message) error {
	r, err := s.read(pos)
	defer s.done(r)
	if err != nil {
		return err
	}
	if r.Device != m.DeviceID {
		return fmt.Errorf("%w: it is of %q, not of %q", forward.ErrUnreadable, r.Device, m.DeviceID)
	}
	m.MessageID = uuid.UUID(r.MessageID).String()
	m.Timestamp, m.AcceptedAt, m.FirstAcceptedAt, m.Traceparent = r.Timestamp, r.AcceptedAt, r.FirstAcceptedAt(), r.Traceparent
	if m.Topic != string(r.Topic) {
		m.Topic = string(r.Topic)
	}
	m.Payload = append(m.Payload, r.Payload...)
	return nil
}

// Delivered is forward.Store's.
func (s *messages) Delivered(pos uint64) { s.journal.Done(journal.Position(pos), journal.Delivered) }

// Dead is forward.Store's. The letter is stored for good before the journal is told.
func (s *messages) Dead(device string, pos uint64, d forward.DeadLetter) error {
	l := deadletter.Letter{
		Device:   device,
		DiedAt:   d.DiedAt,
		Reason:   d.Reason,
		Status:   d.Status,
		Excerpt:  d.Excerpt,
		Attempts: d.Attempts,
	}
	r, err := s.read(pos)
	defer s.done(r)
	switch {
	case err == nil:
		l.MessageID, l.Timestamp, l.AcceptedAt = uuid.UUID(r.MessageID).String(), r.Timestamp, r.FirstAcceptedAt()
		l.Topic, l.Payload, l.Traceparent = string(r.Topic), r.Payload, r.Traceparent
	case errors.Is(err, forward.ErrUnreadable):
		l.MessageID, l.AcceptedAt = journal.Position(pos).String(), d.DiedAt // all that is known of it
	default:
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), letterTimeout)
	defer cancel()
	if err := s.letters.Add(ctx, l); err != nil {
		return noRoom(err)
	}
	s.journal.Done(journal.Position(pos), journal.Dead)
	return nil
}
