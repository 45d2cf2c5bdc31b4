package plugin

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
)

const (
	// letterTimeout bounds the storing of one dead letter, so that Stop does not wait for a database longer than it may.
	letterTimeout = 3 * time.Second
	// maxReadBuffer is the capacity that is kept of a buffer that a message was read into.
	maxReadBuffer = 256 << 10
)

// A store is the forward.Store: the messages lie in the journal, those that are given up become letters in SQLite. The
// forwarder's workers call it.
type store struct {
	journal *journal.Journal
	letters *deadletter.Store
	reads   sync.Pool // of *reading
}

// A reading is what a message is read into.
type reading struct {
	journal.Accepted
	buf []byte
}

func newStore() *store {
	return &store{reads: sync.Pool{New: func() any { return new(reading) }}}
}

// read reads the message at pos; the caller gives the reading back with done.
func (s *store) read(pos uint64) (r *reading, err error) {
	r = s.reads.Get().(*reading)
	r.buf, err = s.journal.Read(journal.Position(pos), &r.Accepted, r.buf)
	if errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrNotFound) {
		err = fmt.Errorf("%w: %w", forward.ErrUnreadable, err)
	}
	return r, err
}

func (s *store) done(r *reading) {
	if cap(r.buf) > maxReadBuffer {
		r.buf = nil
	}
	s.reads.Put(r)
}

// Load is forward.Store's.
func (s *store) Load(pos uint64, m *forward.Message) error {
	r, err := s.read(pos)
	defer s.done(r)
	if err != nil {
		return err
	}
	if r.Device != m.DeviceID {
		return fmt.Errorf("%w: it is of %q, not of %q", forward.ErrUnreadable, r.Device, m.DeviceID)
	}
	m.MessageID = uuidText(r.MessageID)
	m.Timestamp, m.AcceptedAt, m.FirstAcceptedAt, m.Traceparent = r.Timestamp, r.AcceptedAt, r.FirstAcceptedAt(), r.Traceparent
	if m.Topic != string(r.Topic) {
		m.Topic = string(r.Topic)
	}
	m.Payload = append(m.Payload, r.Payload...)
	return nil
}

// Delivered is forward.Store's.
func (s *store) Delivered(pos uint64) { s.journal.Done(journal.Position(pos), journal.Delivered) }

// Dead is forward.Store's. The letter is stored for good before the journal is told.
func (s *store) Dead(device string, pos uint64, d forward.DeadLetter) error {
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
		l.MessageID, l.Timestamp, l.AcceptedAt = uuidText(r.MessageID), r.Timestamp, r.FirstAcceptedAt()
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

// uuidText returns the text form of a UUID, in lower case (RFC 9562, section 4).
func uuidText(id [16]byte) string {
	var text [envelope.MessageIDLen]byte
	hex.Encode(text[0:8], id[0:4])
	text[8] = '-'
	hex.Encode(text[9:13], id[4:6])
	text[13] = '-'
	hex.Encode(text[14:18], id[6:8])
	text[18] = '-'
	hex.Encode(text[19:23], id[8:10])
	text[23] = '-'
	hex.Encode(text[24:36], id[10:16])
	return string(text[:])
}
