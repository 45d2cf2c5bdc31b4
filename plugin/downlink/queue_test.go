package downlink

import (
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"mosquitto-bouncer/plugin/mqtt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQueueKeepsOrderAndSaysWhenToWake(t *testing.T) {
	q := NewQueue(10, 1000)
	for i := range 3 {
		first, err := q.Push(Publish{Message: mqtt.Message{Topic: strconv.Itoa(i)}})
		if err != nil || first != (i == 0) {
			t.Fatalf("push %d: %v %v", i, first, err)
		}
	}
	var topics string
	if n := q.Drain(func(p Publish) { topics += p.Topic }); n != 3 || topics != "012" || q.Len() != 0 {
		t.Errorf("drained %d: %q, %d left", n, topics, q.Len())
	}
	if first, _ := q.Push(Publish{}); !first {
		t.Error("the first message after a drain must wake the thread")
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := NewQueue(2, 10)
	push := func(n int) error {
		_, err := q.Push(Publish{Message: mqtt.Message{Payload: make([]byte, n)}})
		return err
	}
	if err := push(11); !errors.Is(err, ErrFull) {
		t.Errorf("more bytes than fit: %v", err)
	}
	if push(6) != nil || push(4) != nil {
		t.Error("what fits was not taken")
	}
	if err := push(0); !errors.Is(err, ErrFull) {
		t.Errorf("a third message: %v", err)
	}
	q.Drain(func(Publish) {})
	if err := push(10); err != nil {
		t.Errorf("after the drain: %v", err)
	}
}

func TestQueueLosesNothingBetweenGoroutines(t *testing.T) {
	const pushers, each = 8, 5000
	q := NewQueue(pushers*each, 1<<30)
	var pushed sync.WaitGroup
	for p := range pushers {
		pushed.Go(func() {
			for i := range each {
				if _, err := q.Push(Publish{Message: mqtt.Message{Topic: strconv.Itoa(p), QoS: byte(i)}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { pushed.Wait(); close(done) }()
	next := map[string]int{}
	total := 0
	drain := func() {
		total += q.Drain(func(p Publish) {
			if byte(next[p.Topic]) != p.QoS {
				t.Errorf("pusher %s: out of order", p.Topic)
			}
			next[p.Topic]++
		})
	}
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		drain()
	}
	drain()
	if total != pushers*each {
		t.Errorf("%d of %d", total, pushers*each)
	}
}

func TestWakerRepeatsUntilTheThreadCameRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals atomic.Int64
		w := NewWaker(func() { signals.Add(1) }, 2, slog.Default())
		defer w.Stop()
		w.Wake()
		if n := signals.Load(); n != 1 {
			t.Fatalf("%d signals at once, want 1", n)
		}
		time.Sleep(10*repeatEvery + repeatEvery/2)
		synctest.Wait()
		if n := signals.Load(); n != 11 {
			t.Errorf("%d signals without a tick, want 11", n)
		}
		w.Tick()
		time.Sleep(2 * repeatEvery)
		synctest.Wait()
		if n := signals.Load(); n != 13 {
			t.Errorf("%d signals after one tick of two, want 13", n)
		}
		w.Tick()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := signals.Load(); n != 13 {
			t.Errorf("%d signals after the thread came round, want 13", n)
		}
	})
}

func TestWakerGivesUpOnAThreadThatNeverTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals atomic.Int64
		w := NewWaker(func() { signals.Add(1) }, 1, slog.Default())
		w.Wake()
		time.Sleep(time.Minute)
		if n := signals.Load(); n != 1+repeatAtMost {
			t.Errorf("%d signals, want %d", n, 1+repeatAtMost)
		}
		w.Stop()
		w.Stop()
	})
}
