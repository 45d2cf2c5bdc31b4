package webhook

import (
	"slices"
	"sync"
	"testing"

	"mosquitto-bouncer/plugin/forward"
)

// memory is a Store that keeps everything in memory and checks what it is told.
type memory struct {
	t testing.TB

	mu      sync.Mutex
	records []record
	settled map[string]uint64 // by device: the position that was settled last
	letters []letter
	// anyOrder says that a device's messages may be settled in any order.
	anyOrder bool
}

type record struct {
	forward.Message
	became string // "" while pending
}

type letter struct {
	forward.DeadLetter
	forward.Message
}

// Positions are neither dense nor from zero.
const firstPosition, positionStep = 1<<32 + 17, 13

func newMemory(t testing.TB) *memory { return &memory{t: t, settled: make(map[string]uint64)} }

func (s *memory) add(m forward.Message) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Payload = slices.Clone(m.Payload)
	s.records = append(s.records, record{Message: m})
	return uint64(firstPosition + positionStep*(len(s.records)-1))
}

func (s *memory) at(pos uint64) *record {
	i := (pos - firstPosition) / positionStep
	if pos < firstPosition || (pos-firstPosition)%positionStep != 0 || i >= uint64(len(s.records)) {
		s.t.Errorf("no message at %d", pos)
		return new(record)
	}
	return &s.records[i]
}

func (s *memory) check(operation string, pos uint64) forward.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.at(pos)
	if r.became != "" {
		s.t.Errorf("%s of a message that is %s", operation, r.became)
	}
	return r.Message
}

func (s *memory) Load(pos uint64, m *forward.Message) error {
	r := s.check("load", pos)
	if m.DeviceID != r.DeviceID || len(m.Payload) != 0 || m.Traceparent != "" || m.MessageID != "" {
		s.t.Errorf("load into %+v", m)
	}
	m.Payload = append(m.Payload, r.Payload...)
	m.MessageID, m.Timestamp, m.AcceptedAt, m.Topic, m.Traceparent = r.MessageID, r.Timestamp, r.AcceptedAt, r.Topic, r.Traceparent
	return nil
}

func (s *memory) settle(pos uint64, became string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.at(pos)
	r.became = became
	if last := s.settled[r.DeviceID]; pos <= last && !s.anyOrder {
		s.t.Errorf("%s: %d is %s after %d was settled", r.DeviceID, pos, became, last)
	}
	s.settled[r.DeviceID] = pos
}

func (s *memory) Delivered(pos uint64) {
	s.check("delivered", pos)
	s.settle(pos, "delivered")
}

func (s *memory) Dead(_ string, pos uint64, d forward.DeadLetter) error {
	m := s.check("dead", pos)
	s.settle(pos, "dead")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letters = append(s.letters, letter{DeadLetter: d, Message: m})
	return nil
}

// count returns how many messages became what is asked for; "": are pending.
func (s *memory) count(became string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.records {
		if s.records[i].became == became {
			n++
		}
	}
	return n
}
