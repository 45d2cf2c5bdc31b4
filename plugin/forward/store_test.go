package forward

import (
	"testing"

	"mosquitto-bouncer/plugin/forward/forwardtest"
)

// memory is forwardtest's Store as a Store.
type memory struct{ *forwardtest.Store }

func newMemory(t testing.TB) *memory { return &memory{forwardtest.NewStore(t)} }

func (s *memory) add(m Message) uint64 { return s.Add(forwardtest.Message(m)) }

func (s *memory) Load(pos uint64, m *Message) error {
	return s.Store.Load(pos, (*forwardtest.Message)(m))
}

func (s *memory) Dead(device string, pos uint64, d DeadLetter) error {
	return s.Store.Dead(device, pos, forwardtest.DeadLetter(d))
}

func (s *memory) failWith(f func(operation string, m *Message) error) {
	if f == nil {
		s.FailWith(nil)
		return
	}
	s.FailWith(func(operation string, m *forwardtest.Message) error { return f(operation, (*Message)(m)) })
}

// number returns n of message(device, n).
func number(m *Message) string { return forwardtest.Number(m.MessageID) }
