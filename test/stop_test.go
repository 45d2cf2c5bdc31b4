package test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
)

// stopping begins to stop the broker and returns when it has left its loop: it then waits for the plugin. How the stop
// went comes in the channel.
func (g *gate) stopping() <-chan error {
	g.Helper()
	mark := g.broker.Log().Mark()
	stopped := make(chan error, 1)
	go func() { stopped <- g.broker.Stop() }()
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Matches(`mosquitto version \S+ terminating`))
	g.no(err)
	return stopped
}

// TestStopDelivers stops the broker while the backend is behind. Everything that was accepted is delivered all the same.
func TestStopDelivers(t *testing.T) {
	const devices, messages = 4, 25
	var ids []string
	for i := range devices {
		ids = append(ids, fmt.Sprintf("sensor_%03d", i))
	}
	g := newGate(t, broker.Options{Devices: ids})
	hold := newHold(g)
	g.backend.Script(func(r *backend.Request) backend.Answer {
		hold.wait()
		return backend.OK(r)
	})
	for _, id := range ids {
		c := g.connect(g.device(id), mqtt5)
		for n := range messages {
			m := c.Sign(fmt.Sprint(n))
			g.expect(c.DataTopic(), m)
			if ack := g.publish(c, c.DataTopic(), 1, m.Bytes); !ack.Accepted() {
				t.Fatal(ack)
			}
		}
	}
	_, err := g.backend.Wait(g.limit(), devices) // each device's first; the others are behind it
	g.no(err)
	begin := time.Now()
	stopped := g.stopping()
	if n := g.backend.Count(); n != devices {
		t.Errorf("%d requests before the backend has answered any, want %d", n, devices)
	}
	hold.release()
	g.no(<-stopped)
	t.Logf("%d messages were still to be delivered; the broker ended after %v", devices*messages, time.Since(begin))
	g.noMore("the backend", g.unexpectedRequests())
	next := map[string]int{}
	for _, r := range g.backend.Requests() {
		if string(r.Body) != fmt.Sprint(next[r.Device]) {
			t.Errorf("%s: the backend got %s, want %d", r.Device, r.Body, next[r.Device])
		}
		next[r.Device]++
	}
}

// TestStopIsBounded stops the broker while the backend answers nothing at all.
func TestStopIsBounded(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"backend.timeout": "1m"}})
	g.backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Hang: true} })
	c := g.connect(g.device("sensor_001"), mqtt5)
	for range 3 {
		if ack := g.publish(c, c.DataTopic(), 1, c.Sign("22").Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
	}
	_, err := g.backend.Wait(g.limit(), 1)
	g.no(err)
	begin := time.Now()
	g.no(g.broker.Stop())
	took := time.Since(begin)
	t.Logf("the broker ended after %v", took)
	if took > 5*time.Second {
		t.Errorf("the broker ended after %v", took)
	}
	_, err = g.broker.WaitLog(context.Background(), 0, broker.Contains(
		"bouncer: the backend has not taken every accepted message yet", "3 messages were not delivered"))
	g.no(err)
	_, err = g.broker.WaitLog(context.Background(), 0, broker.Contains("bouncer: stopped accepted=3 delivered=0 dead=0 pending=3"))
	g.no(err)
}

// stopped sends a signal and checks that the broker ends by itself, successfully and in time, and that the log says
// how many accepted messages were left behind, when that is more than none.
func (g *gate) stopped(sig syscall.Signal, within time.Duration, left int) {
	g.Helper()
	p := g.broker.Process()
	mark := g.broker.Log().Mark()
	begin := time.Now()
	g.no(p.Signal(sig))
	select {
	case <-p.Done():
	case <-g.limit().Done():
		g.Fatalf("the broker still runs %v after %v", patience, sig)
	}
	if took := time.Since(begin); took > within {
		g.Errorf("%v: the broker stopped after %v, want at most %v", sig, took, within)
	}
	exit, ok := errors.AsType[*broker.ExitError](p.Ended())
	if !ok || exit.Code != 0 {
		g.Errorf("%v: %v", sig, p.Ended())
	}
	lost := g.broker.Log().Find(mark, broker.Contains("bouncer: the backend has not taken every accepted message yet"))
	switch {
	case left == 0 && len(lost) > 0:
		g.Errorf("%v: all was delivered, but the log says: %s", sig, lost)
	case left > 0 && (len(lost) != 1 || !strings.Contains(lost[0], fmt.Sprintf("%d messages were not delivered", left))):
		g.Errorf("%v: %d messages were left behind, the log says: %q", sig, left, lost)
	}
	if g.broker.Log().Count(mark, broker.Contains("bouncer: stopped")) != 1 {
		g.Errorf("%v: the plugin did not say that it has stopped", sig)
	}
}

// settledAt checks the plugin's last account: all that was ever accepted is with the backend.
func (g *gate) settledAt(n int) {
	g.Helper()
	stopped := g.broker.Log().Find(0, broker.Contains("bouncer: stopped "))
	if want := fmt.Sprintf("accepted=%d delivered=%d dead=0 pending=0", n, n); len(stopped) == 0 || !strings.HasSuffix(stopped[len(stopped)-1], want) {
		g.Errorf("the plugin stopped with %q, want %s", stopped, want)
	}
}

func TestStops(t *testing.T) {
	const idle, busy = 2 * time.Second, 5 * time.Second // the most that a stop may take
	ids := names(5)
	send := func(g *gate, n int) {
		g.Helper()
		var clients []*client
		for _, id := range ids {
			clients = append(clients, g.connect(g.device(id), mqtt5))
		}
		for i := range n {
			c := clients[i%len(clients)]
			if ack := g.publish(c, c.DataTopic(), 1, c.Sign(payload).Bytes); !ack.Accepted() {
				g.Fatalf("message %d: %v", i+1, ack)
			}
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Run("idle", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				send(g, 1) // right after it says that it runs, 2.0 forgets a SIGTERM
				if _, err := g.backend.Wait(g.limit(), 1); err != nil {
					g.Fatal(err)
				}
				g.stopped(sig, idle, 0)
			})
			t.Run("with connections", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				f := g.fleet(ids)
				d := f.devices[0]
				g.accept(g.connect(d, mqtt5), 1, d.Sign(payload))
				g.stopped(sig, idle, 0)
			})
			t.Run("backend refuses connections", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				f := g.fleet(ids[:1])
				d := f.devices[0]
				g.accept(g.connect(d, mqtt5), 1, d.Sign(payload))
				_, err := f.inboxes[0].WaitCount(g.limit(), d.ResponseTopic(), 1) // until then it may yet fail
				g.no(err)
				g.no(g.backend.Down())
				send(g, 100)
				g.stopped(sig, busy, 100)
				g.no(g.backend.Up())
				g.no(g.broker.Start())
				_, err = g.backend.Wait(g.limit(), 101)
				g.no(err)
				g.no(g.broker.Stop())
				g.settledAt(101)
			})
			t.Run("backend hangs", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				g.backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Hang: true} })
				send(g, 100)
				if _, err := g.backend.Wait(g.limit(), len(ids)); err != nil {
					g.Fatal(err)
				}
				g.stopped(sig, busy, 100)
			})
			t.Run("backend is slow", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				g.backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Delay: 50 * time.Millisecond} })
				send(g, 50)
				g.stopped(sig, busy, 0)
				if n := g.backend.Count(); n != 50 {
					g.Errorf("the backend got %d messages of 50", n)
				}
			})
		})
	}
}
