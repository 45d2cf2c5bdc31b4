package webhook

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/forwardtest"
	"mosquitto-bouncer/plugin/testkit"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(patient{m}, serverGoroutines...)
}

// serverGoroutines are of the server that the benchmark uses.
var serverGoroutines = []goleak.Option{
	goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
	goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
}

// patient waits for fasthttp's cleaner, which outlives Close by Config.idle.
type patient struct{ *testing.M }

func (m patient) Run() int {
	code := m.M.Run()
	for range 20 { // each tries for a while
		if goleak.Find(serverGoroutines...) == nil {
			break
		}
	}
	return code
}

// fixture is a Forwarder with what it said.
type fixture struct {
	*forward.Forwarder
	t        testing.TB
	sink     *Sink
	store    *memory
	log      *testkit.Log
	patience time.Duration
	mu       sync.Mutex
	answers  []forward.Response
}

// forwarder makes a Forwarder of a Sink. A batch waits for an hour to be full.
func forwarder(cfg Config, store forward.Store, answer func(forward.Response), log *testkit.Log) (*forward.Forwarder, error) {
	sink, err := New(cfg)
	if err != nil {
		return nil, err
	}
	return forwarderOf(sink, cfg, store, answer, log)
}

func forwarderOf(sink *Sink, cfg Config, store forward.Store, answer func(forward.Response), log *testkit.Log) (*forward.Forwarder, error) {
	to := forward.Config{Sink: sink, Concurrency: cfg.Concurrency, Batch: cfg.Batch, Linger: time.Hour}
	return forward.New(to, store, answer, log.Logger())
}

func start(t testing.TB, cfg Config) *fixture {
	t.Helper()
	x := &fixture{t: t, store: newMemory(t), log: &testkit.Log{}, patience: 20 * time.Second}
	if cfg.idle == 0 {
		cfg.idle = 50 * time.Millisecond // fasthttp's cleaner outlives Close by as much
	}
	sink, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	x.sink = sink
	f, err := forwarderOf(sink, cfg, x.store, func(a forward.Response) {
		m := *a.Message
		m.Payload = slices.Clone(m.Payload)
		a.Message = &m
		x.mu.Lock()
		defer x.mu.Unlock()
		x.answers = append(x.answers, a)
	}, x.log)
	if err != nil {
		t.Fatal(err)
	}
	x.Forwarder = f
	f.Start(forward.Counts{})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f.Close(ctx)
	})
	return x
}

// Enqueue stores m and enqueues its position.
func (x *fixture) Enqueue(m forward.Message) error {
	if err := x.Admit(m.DeviceID); err != nil {
		return err
	}
	x.Forwarder.Enqueue(m.DeviceID, x.store.add(m), len(m.Payload))
	x.Dispatch()
	return nil
}

func (x *fixture) enqueue(m forward.Message) {
	x.t.Helper()
	if err := x.Enqueue(m); err != nil {
		x.t.Fatalf("Enqueue: %v", err)
	}
}

// drain closes the Forwarder and expects everything to have been delivered or given up.
func (x *fixture) drain() forward.Stats {
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
func message(device string, n int) forward.Message {
	return forward.Message(forwardtest.NewMessage(device, n))
}

// bomb is a courier that panics.
type bomb struct{ courier }

func (*bomb) pack(*forward.Message) { panic("packing went wrong") }

// A courier that has panicked is not used again: its state is unknown.
func TestPanicLosesCourier(t *testing.T) {
	sink, err := New(Config{URL: "http://127.0.0.1:1", idle: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 100 { // the pool may forget one
		sink.couriers.Put(new(bomb))
		func() {
			defer func() { _ = recover() }()
			sink.Send(ctx, &forward.Batch{Messages: []forward.Message{message("a", 1)}})
		}()
		if c, is := sink.couriers.Get().(*bomb); is {
			t.Fatalf("%v is used again", c)
		}
	}
}
