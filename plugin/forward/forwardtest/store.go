// Package forwardtest is what the tests of package forward and of its sinks need. It does not import package forward,
// because forward's tests are in forward itself: Message and DeadLetter have the fields of forward's types, to which they
// are converted. Only tests import it.
package forwardtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Message is a forward.Message.
type Message struct {
	DeviceID        string
	MessageID       string
	Timestamp       int64
	AcceptedAt      time.Time
	FirstAcceptedAt time.Time
	Topic           string
	Payload         []byte
	Traceparent     string
}

// NewMessage returns the n-th message of a device.
func NewMessage(device string, n int) Message {
	return Message{
		DeviceID:   device,
		MessageID:  fmt.Sprintf("550e8400-e29b-41d4-a716-%012d", n),
		Timestamp:  1727712000,
		AcceptedAt: time.Now(),
		Topic:      "device/" + device + "/data",
		Payload:    fmt.Appendf(nil, `{"n":%d}`, n),
	}
}

// Number returns n of NewMessage(device, n), whose id is given.
func Number(messageID string) string { return strings.TrimLeft(messageID[24:], "0") }

// A DeadLetter is a forward.DeadLetter.
type DeadLetter struct {
	Reason   string
	Status   int
	Excerpt  string
	Attempts int
	DiedAt   time.Time
}

// A Store keeps everything in memory and checks what it is told.
type Store struct {
	t testing.TB

	// AnyOrder says that a device's messages may be settled in any order.
	AnyOrder bool

	mu      sync.Mutex
	records []record
	Letters []Letter
	settled map[string]uint64 // by device: the position that was settled last
	// fail, if not nil, is asked before every operation (load, delivered or dead); it may panic.
	fail func(operation string, m *Message) error
}

type record struct {
	Message
	became string // "" while pending
}

// A Letter is a dead letter with its message.
type Letter struct {
	DeadLetter
	Message
}

// Positions are neither dense nor from zero.
const FirstPosition, PositionStep = 1<<32 + 17, 13

func NewStore(t testing.TB) *Store { return &Store{t: t, settled: make(map[string]uint64)} }

// Add stores a message and returns its position.
func (s *Store) Add(m Message) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Payload = slices.Clone(m.Payload)
	s.records = append(s.records, record{Message: m})
	return uint64(FirstPosition + PositionStep*(len(s.records)-1))
}

func (s *Store) at(pos uint64) *record {
	i := (pos - FirstPosition) / PositionStep
	if pos < FirstPosition || (pos-FirstPosition)%PositionStep != 0 || i >= uint64(len(s.records)) {
		s.t.Errorf("no message at %d", pos)
		return new(record)
	}
	return &s.records[i]
}

func (s *Store) check(operation string, pos uint64) (Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.at(pos)
	if r.became != "" {
		s.t.Errorf("%s of a message that is %s", operation, r.became)
	}
	if s.fail == nil {
		return r.Message, nil
	}
	return r.Message, s.fail(operation, &r.Message)
}

// Load is forward.Store's.
func (s *Store) Load(pos uint64, m *Message) error {
	r, err := s.check("load", pos)
	if err != nil {
		return err
	}
	if m.DeviceID != r.DeviceID || len(m.Payload) != 0 || m.Traceparent != "" || m.MessageID != "" {
		s.t.Errorf("load into %+v", m)
	}
	m.Payload = append(m.Payload, r.Payload...)
	m.MessageID, m.Timestamp, m.AcceptedAt, m.Topic, m.Traceparent = r.MessageID, r.Timestamp, r.AcceptedAt, r.Topic, r.Traceparent
	return nil
}

func (s *Store) settle(pos uint64, became string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.at(pos)
	r.became = became
	if last := s.settled[r.DeviceID]; pos <= last && !s.AnyOrder {
		s.t.Errorf("%s: %d is %s after %d was settled", r.DeviceID, pos, became, last)
	}
	s.settled[r.DeviceID] = pos
}

// Delivered is forward.Store's.
func (s *Store) Delivered(pos uint64) {
	s.check("delivered", pos)
	s.settle(pos, "delivered")
}

// Dead is forward.Store's.
func (s *Store) Dead(_ string, pos uint64, d DeadLetter) error {
	m, err := s.check("dead", pos)
	if err != nil {
		return err
	}
	s.settle(pos, "dead")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Letters = append(s.Letters, Letter{DeadLetter: d, Message: m})
	return nil
}

// Count returns how many messages became what is asked for; "": are pending.
func (s *Store) Count(became string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.records {
		if s.records[i].became == became {
			n++
		}
	}
	return n
}

// EachPending calls f with each message that is pending, the one with the greatest position first.
func (s *Store) EachPending(f func(pos uint64, m *Message)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range slices.Backward(s.records) {
		if r.became == "" {
			f(FirstPosition+PositionStep*uint64(i), &r.Message)
		}
	}
}

// Graves lists the dead letters: device/n reason status attempts.
func (s *Store) Graves() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := []string{}
	for _, l := range s.Letters {
		lines = append(lines, fmt.Sprintf("%s/%s %s %d %d", l.DeviceID, Number(l.MessageID), l.Reason, l.Status, l.Attempts))
	}
	return strings.Join(lines, ", ")
}

// FailWith has f asked before every operation (load, delivered or dead); nil: no more. It may panic.
func (s *Store) FailWith(f func(operation string, m *Message) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// Settled fails the test unless everything has been delivered or given up, as a forwarder's counts say that have come with
// latencies of deliveries.
func (s *Store) Settled(accepted, delivered, dead uint64, latencies []uint64) {
	s.t.Helper()
	if accepted != delivered+dead || delivered != uint64(s.Count("delivered")) || dead != uint64(s.Count("dead")) || s.Count("") != 0 {
		s.t.Fatalf("accepted %d, delivered %d, dead %d; in the store %d delivered, %d dead, %d pending",
			accepted, delivered, dead, s.Count("delivered"), s.Count("dead"), s.Count(""))
	}
	observed := uint64(0)
	for _, n := range latencies {
		observed += n
	}
	if observed != delivered {
		s.t.Fatalf("%d latencies of %d deliveries", observed, delivered)
	}
}
