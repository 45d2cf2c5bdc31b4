package forward

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// logBuffer is a log that a test can read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// count returns how many lines contain all of the parts.
func (l *logBuffer) count(parts ...string) (n int) {
	for line := range strings.Lines(l.String()) {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(line, part)
		}
		if all {
			n++
		}
	}
	return n
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// fixture is a Forwarder with what it said.
type fixture struct {
	*Forwarder
	t        testing.TB
	store    *memory
	log      *logBuffer
	patience time.Duration
	mu       sync.Mutex
	answers  []Answer
}

func start(t testing.TB, cfg Config) *fixture {
	t.Helper()
	x := &fixture{t: t, store: newMemory(t), log: &logBuffer{}, patience: time.Hour} // on synthetic time
	x.store.anyOrder = cfg.Unordered
	f, err := New(cfg, x.store, func(a Answer) {
		m := *a.Message
		m.Payload = slices.Clone(m.Payload)
		a.Message = &m
		x.mu.Lock()
		defer x.mu.Unlock()
		x.answers = append(x.answers, a)
	}, x.log.logger())
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
	if s.Pending != 0 || s.Lanes != 0 || s.InFlight != 0 || s.Accepted != s.Delivered+s.Dead ||
		s.Delivered != uint64(x.store.count("delivered")) ||
		s.Dead != uint64(x.store.count("dead")) || x.store.count("") != 0 {
		x.t.Fatalf("after Close: %+v", s)
	}
	observed := uint64(0)
	for _, n := range s.Latency.Counts {
		observed += n
	}
	if observed != s.Delivered {
		x.t.Fatalf("%d latencies of %d deliveries", observed, s.Delivered)
	}
	return s
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// message returns the n-th message of a device.
func message(device string, n int) Message {
	return Message{
		DeviceID:   device,
		MessageID:  fmt.Sprintf("550e8400-e29b-41d4-a716-%012d", n),
		Timestamp:  1727712000,
		AcceptedAt: time.Now(),
		Topic:      "device/" + device + "/data",
		Payload:    fmt.Appendf(nil, `{"n":%d}`, n),
	}
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
		if _, err := New(cfg, newMemory(t), nil, (&logBuffer{}).logger()); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s...", err, want)
		}
	}
}
