package forward

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/forward/forwardtest"
	"mosquitto-bouncer/plugin/testkit"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// fixture is a Forwarder with what it said.
type fixture struct {
	*Forwarder
	t         testing.TB
	store     *memory
	log       *testkit.Log
	patience  time.Duration
	answersMu sync.Mutex // guards answers
	answers   []Response
}

func start(t testing.TB, cfg Config) *fixture {
	t.Helper()
	x := &fixture{t: t, store: newMemory(t), log: &testkit.Log{}, patience: time.Hour} // on synthetic time
	x.store.AnyOrder = cfg.Unordered
	f, err := New(cfg, x.store, func(a Response) {
		m := *a.Message
		m.Payload = slices.Clone(m.Payload)
		a.Message = &m
		x.answersMu.Lock()
		defer x.answersMu.Unlock()
		x.answers = append(x.answers, a)
	}, x.log.Logger())
	if err != nil {
		t.Fatal(err)
	}
	x.Forwarder = f
	f.Start(Counts{})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f.Close(ctx)
		<-f.exited
	})
	return x
}

// Enqueue stores m and enqueues its position.
func (x *fixture) Enqueue(m Message) error {
	if err := x.Admit(m.DeviceID); err != nil {
		return err
	}
	x.Forwarder.Enqueue(m.DeviceID, x.store.add(m), len(m.Payload))
	x.Dispatch()
	return nil
}

func (x *fixture) enqueue(m Message) {
	x.t.Helper()
	if err := x.Enqueue(m); err != nil {
		x.t.Fatalf("Enqueue: %v", err)
	}
}

// drain closes the Forwarder and expects everything to have been delivered or given up.
func (x *fixture) drain() Stats {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), x.patience)
	defer cancel()
	if err := x.Close(ctx); err != nil {
		x.t.Fatalf("Close: %v\nlog:\n%s", err, x.log)
	}
	s := x.Stats()
	if s.Pending != 0 || s.Lanes != 0 || s.InFlight != 0 {
		x.t.Fatalf("after Close: %+v", s)
	}
	x.store.Settled(s.Accepted, s.Delivered, s.Dead, s.Latency.Counts[:])
	return s
}

// message returns the n-th message of a device.
func message(device string, n int) Message {
	return Message(forwardtest.NewMessage(device, n))
}

func TestBackoff(t *testing.T) {
	for failures, ceiling := range map[int]time.Duration{
		1:       100 * time.Millisecond,
		2:       200 * time.Millisecond,
		5:       1600 * time.Millisecond,
		9:       25600 * time.Millisecond,
		10:      30 * time.Second,
		1000000: 30 * time.Second,
	} {
		var longest time.Duration
		for range 1000 {
			d := backoff(failures, maxBackoff)
			if d < 0 || d >= ceiling {
				t.Fatalf("backoff(%d) = %v, want below %v", failures, d, ceiling)
			}
			longest = max(longest, d)
		}
		if longest < ceiling*9/10 {
			t.Errorf("backoff(%d): longest of 1000 is %v, want it to spread up to %v", failures, longest, ceiling)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for want, cfg := range map[string]Config{
		"backend: concurrency, maximum age,":   {Concurrency: -1},
		"backend: batch is 1001; at most 1000": {Batch: 1001},
	} {
		if _, err := New(cfg, newMemory(t), nil, (&testkit.Log{}).Logger()); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s...", err, want)
		}
	}
}
