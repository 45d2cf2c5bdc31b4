package forward

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

// Enqueue wakes no worker; Dispatch wakes an idle worker, and a busy one looks by itself.
func TestDispatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(*Message) reply { time.Sleep(time.Second); return reply{status: 200} })
		cfg.Concurrency = 1
		x := start(t, cfg)
		put := func(n int) { x.Forwarder.Enqueue("a", x.store.add(message("a", n)), 100) }
		inFlight := func(n int) {
			t.Helper()
			synctest.Wait()
			x.Forwarder.mu.Lock()
			defer x.Forwarder.mu.Unlock()
			if x.inFlight != n {
				t.Errorf("%d in flight, want %d", x.inFlight, n)
			}
		}
		inFlight(0)
		x.Dispatch() // for nothing
		put(1)
		inFlight(0)
		x.Dispatch()
		x.Dispatch()
		inFlight(1)
		put(2)
		time.Sleep(1500 * time.Millisecond)
		inFlight(1) // the second, undispatched
		time.Sleep(time.Second)
		inFlight(0)
		put(3) // Close takes what no worker was woken for
		if s := x.drain(); s.Delivered != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// However enqueuing, dispatching and the workers' falling asleep come together, nothing is left lying.
func TestNoArrivalIsMissed(t *testing.T) {
	x := start(t, with(func(*Message) reply { return reply{status: 200} }))
	x.patience = 20 * time.Second
	var wg sync.WaitGroup
	for p := range 2 {
		wg.Go(func() {
			for n := range 2000 {
				x.enqueue(message(fmt.Sprint("d", p), n+1))
				if rand.N(4) == 0 {
					testkit.Eventually(t, "the message", func() bool { return x.intake.n.Load() == 0 })
				}
			}
		})
	}
	wg.Wait()
	testkit.Eventually(t, "all messages", func() bool { return x.store.Count("") == 0 })
	x.drain()
}

// While every worker waits for the backend, what arrives does not pile up in the intake.
func TestIntakeIsBoundedWhileNobodyIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(*Message) reply { time.Sleep(time.Minute); return reply{status: 200} })
		cfg.Concurrency = 1
		x := start(t, cfg)
		x.enqueue(message("a", 1))
		synctest.Wait() // the only worker is busy
		for n := range maxSpareArrivals {
			x.Forwarder.Enqueue("a", uint64(n+1000), 100) // never looked for
			if n%1000 == 0 {
				x.Dispatch()
				synctest.Wait()
			}
		}
		x.Dispatch()
		synctest.Wait()
		if n := x.intake.n.Load(); n > maxSpareArrivals/2 {
			t.Errorf("%d messages lie in the intake", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = x.Forwarder.Close(ctx)
	})
}
