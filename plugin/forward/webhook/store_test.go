package webhook

import (
	"testing"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/forwardtest"
)

// memory is forwardtest's Store as a Store.
type memory struct{ *forwardtest.Store }

func newMemory(t testing.TB) *memory { return &memory{forwardtest.NewStore(t)} }

func (s *memory) add(m forward.Message) uint64 { return s.Add(forwardtest.Message(m)) }

func (s *memory) Load(pos uint64, m *forward.Message) error {
	return s.Store.Load(pos, (*forwardtest.Message)(m))
}

func (s *memory) Dead(device string, pos uint64, d forward.DeadLetter) error {
	return s.Store.Dead(device, pos, forwardtest.DeadLetter(d))
}
