package harness

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
)

// WaitDrained waits until bouncerctl queue would show nothing.
func (g *Gateway) WaitDrained(within time.Duration) {
	g.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		pending, err := pendingIn(g.Broker.Path("state/journal"))
		g.Must(err)
		if pending == 0 {
			return
		}
		if time.Now().After(deadline) {
			g.Fatalf("%d messages are still pending after %v", pending, within)
		}
	}
}

// pendingIn counts the messages in a journal that no outcome is known of.
func pendingIn(dir string) (pending int, err error) {
	_, err = journal.Inspect(dir, func(_ journal.Position, _ *journal.Accepted, o journal.Outcome) {
		if o == journal.Pending {
			pending++
		}
	})
	return pending, err
}

// ExpectAllDelivered checks the plugin's last account: all that was ever accepted is with the backend.
func (g *Gateway) ExpectAllDelivered(n int) {
	g.Helper()
	stopped := g.Broker.Log().Find(0, broker.Contains("bouncer: stopped "))
	if want := fmt.Sprintf("accepted=%d delivered=%d dead=0 pending=0", n, n); len(stopped) == 0 || !strings.HasSuffix(stopped[len(stopped)-1], want) {
		g.Errorf("the plugin stopped with %q, want %s", stopped, want)
	}
}

// TakeRequests hands every request to enter, in a goroutine of its own, and forgets it; stop when no more come.
func (g *Gateway) TakeRequests(enter func(*backend.Request)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	g.Cleanup(cancel)
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			requests, err := g.Backend.Take(ctx)
			for _, r := range requests {
				enter(r)
			}
			if err != nil {
				return
			}
		}
	})
	return func() {
		cancel()
		reading.Wait()
		for _, r := range g.Backend.Requests() {
			enter(r)
		}
	}
}

// A Hold keeps the backend from answering.
type Hold struct{ released chan struct{} }

// NewHold returns a hold that is released at the end of the test, if not before.
func NewHold(g *Gateway) *Hold {
	h := &Hold{released: make(chan struct{})}
	g.Cleanup(h.Release)
	return h
}

// Wait returns when the hold is released.
func (h *Hold) Wait() { <-h.released }

// Release lets the backend answer; more than once does no harm.
func (h *Hold) Release() {
	select {
	case <-h.released:
	default:
		close(h.released)
	}
}
