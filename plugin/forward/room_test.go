package forward

import (
	"sync/atomic"
	"testing"

	"mosquitto-bouncer/plugin/testkit"
)

// blocked makes each request wait for a value on release.
func blocked(cfg Config, release <-chan struct{}) Config {
	cfg.Sink = one(func(*Message) reply { <-release; return reply{status: 200} })
	return cfg
}

func TestFull(t *testing.T) {
	release := make(chan struct{})
	x := start(t, blocked(Config{MaxPending: 3}, release))
	for _, device := range []string{"a", "b", "c"} {
		x.enqueue(message(device, 1))
	}
	for range 2 {
		if err := x.Enqueue(message("d", 1)); err != ErrFull {
			t.Errorf("%v, want ErrFull", err)
		}
	}
	if s := x.Stats(); s.Accepted != 3 || s.Pending != 3 || s.Lanes != 3 {
		t.Errorf("%+v", s)
	}
	release <- struct{}{}
	testkit.Eventually(t, "room", func() bool { return x.Enqueue(message("d", 1)) == nil })
	close(release)
	if s := x.drain(); s.Delivered != 4 {
		t.Errorf("%+v", s)
	}
}

// TestOneDeviceLeavesRoom has a device send faster than the backend answers.
func TestOneDeviceLeavesRoom(t *testing.T) {
	one := message("a", 1)
	for name, cfg := range map[string]Config{
		"messages": {MaxPending: 10 * laneShare},
		"bytes":    {MaxBytes: int64(10 * laneShare * laneUnit * (len(one.Payload)/laneUnit + 1))},
	} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			x := start(t, blocked(cfg, release))
			sent := uint64(0)
			for x.Enqueue(one) == nil {
				sent++
				x.Stats() // has it looked at, which a worker may not have done yet
				if sent > 100 {
					t.Fatal("one device takes everything")
				}
			}
			if sent < 10 || sent > 11 { // one may be in flight
				t.Errorf("%d messages of one device, want a quarter of 40", sent)
			}
			if err := x.Enqueue(one); err != ErrShare {
				t.Errorf("more than a device's share: %v, want ErrShare", err)
			}
			x.enqueue(message("b", 1))
			close(release)
			testkit.Eventually(t, "room", func() bool { return x.Enqueue(one) == nil })
			if s := x.drain(); s.Delivered != sent+2 || x.crowding.Load() != nil {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestEnqueueAllocations(t *testing.T) {
	block := make(chan struct{})
	store := &endless{m: message("a", 1)}
	x, err := New(with(func(*Message) reply { <-block; return reply{status: 200} }), store, nil, (&testkit.Log{}).Logger())
	if err != nil {
		t.Fatal(err)
	}
	x.Start(Counts{})
	x.Enqueue("a", 1, 1)
	if n := testing.AllocsPerRun(1000, func() { x.Enqueue("a", 1, 1) }); n > 0.1 {
		t.Errorf("%v allocations", n)
	}
	close(block)
	if err := x.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// endless is a Store of one message again and again, to measure the forwarder alone.
type endless struct {
	m         Message
	delivered atomic.Uint64
}

func (s *endless) Load(_ uint64, m *Message) error {
	m.Payload = append(m.Payload, s.m.Payload...)
	m.MessageID, m.Timestamp, m.AcceptedAt, m.Topic = s.m.MessageID, s.m.Timestamp, s.m.AcceptedAt, s.m.Topic
	return nil
}

func (s *endless) Delivered(uint64) { s.delivered.Add(1) }

func (s *endless) Dead(string, uint64, DeadLetter) error { panic("dead") }
