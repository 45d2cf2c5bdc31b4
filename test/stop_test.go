package test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
)

// stopping begins to stop the broker and returns when it has left its loop: it then waits for the plugin. How the stop
// went comes in the channel.
func stopping(g *harness.Gateway) <-chan error {
	g.Helper()
	mark := g.Broker.Log().Mark()
	stopped := make(chan error, 1)
	go func() { stopped <- g.Broker.Stop() }()
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Matches(`mosquitto version \S+ terminating`))
	g.Must(err)
	return stopped
}

// TestStopDelivers stops the broker while the backend is behind. Everything that was accepted is delivered all the same.
func TestStopDelivers(t *testing.T) {
	const devices, messages = 4, 25
	var ids []string
	for i := range devices {
		ids = append(ids, fmt.Sprintf("sensor_%03d", i))
	}
	g := harness.New(t, broker.Options{Devices: ids})
	hold := harness.NewHold(g)
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		hold.Wait()
		return backend.OK(r)
	})
	for _, id := range ids {
		c := g.Connect(g.Device(id), harness.MQTT5)
		for n := range messages {
			m := c.Sign(fmt.Sprint(n))
			g.Expect(c.DataTopic(), m)
			if ack := g.Publish(c, c.DataTopic(), 1, m.Bytes); !ack.Accepted() {
				t.Fatal(ack)
			}
		}
	}
	_, err := g.Backend.Wait(g.Limit(), devices) // each device's first; the others are behind it
	g.Must(err)
	begin := time.Now()
	stopped := stopping(g)
	if n := g.Backend.Count(); n != devices {
		t.Errorf("%d requests before the backend has answered any, want %d", n, devices)
	}
	hold.Release()
	g.Must(<-stopped)
	t.Logf("%d messages were still to be delivered; the broker ended after %v", devices*messages, time.Since(begin))
	g.NoMore("the backend", g.UnexpectedRequests())
	next := map[string]int{}
	for _, r := range g.Backend.Requests() {
		if string(r.Body) != fmt.Sprint(next[r.Device]) {
			t.Errorf("%s: the backend got %s, want %d", r.Device, r.Body, next[r.Device])
		}
		next[r.Device]++
	}
}

// TestStopIsBounded stops the broker while the backend answers nothing at all.
func TestStopIsBounded(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"backend.timeout": "1m"}})
	g.Backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Hang: true} })
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	for range 3 {
		if ack := g.Publish(c, c.DataTopic(), 1, c.Sign("22").Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
	}
	_, err := g.Backend.Wait(g.Limit(), 1)
	g.Must(err)
	begin := time.Now()
	g.Must(g.Broker.Stop())
	took := time.Since(begin)
	t.Logf("the broker ended after %v", took)
	if took > 5*time.Second {
		t.Errorf("the broker ended after %v", took)
	}
	_, err = g.Broker.WaitLog(context.Background(), 0, broker.Contains(
		"bouncer: some accepted messages are not delivered yet", "3 messages were not delivered"))
	g.Must(err)
	_, err = g.Broker.WaitLog(context.Background(), 0, broker.Contains("bouncer: stopped accepted=3 delivered=0 dead=0 pending=3"))
	g.Must(err)
}

// stopped sends a signal and checks that the broker ends by itself, successfully and in time, and that the log says
// how many accepted messages were left behind, when that is more than none.
func stopped(g *harness.Gateway, sig syscall.Signal, within time.Duration, left int) {
	g.Helper()
	p := g.Broker.Process()
	mark := g.Broker.Log().Mark()
	begin := time.Now()
	g.Must(p.Signal(sig))
	select {
	case <-p.Done():
	case <-g.Limit().Done():
		g.Fatalf("the broker still runs %v after %v", harness.Patience, sig)
	}
	if took := time.Since(begin); took > within {
		g.Errorf("%v: the broker stopped after %v, want at most %v", sig, took, within)
	}
	exit, ok := errors.AsType[*broker.ExitError](p.Ended())
	if !ok || exit.Code != 0 {
		g.Errorf("%v: %v", sig, p.Ended())
	}
	lost := g.Broker.Log().Find(mark, broker.Contains("bouncer: some accepted messages are not delivered yet"))
	switch {
	case left == 0 && len(lost) > 0:
		g.Errorf("%v: all was delivered, but the log says: %s", sig, lost)
	case left > 0 && (len(lost) != 1 || !strings.Contains(lost[0], fmt.Sprintf("%d messages were not delivered", left))):
		g.Errorf("%v: %d messages were left behind, the log says: %q", sig, left, lost)
	}
	if g.Broker.Log().Count(mark, broker.Contains("bouncer: stopped")) != 1 {
		g.Errorf("%v: the plugin did not say that it has stopped", sig)
	}
}

func TestStops(t *testing.T) {
	const idle, busy = 2 * time.Second, 5 * time.Second // the most that a stop may take
	ids := harness.DeviceIDs(5)
	send := func(g *harness.Gateway, n int) {
		g.Helper()
		var clients []*harness.Client
		for _, id := range ids {
			clients = append(clients, g.Connect(g.Device(id), harness.MQTT5))
		}
		for i := range n {
			c := clients[i%len(clients)]
			if ack := g.Publish(c, c.DataTopic(), 1, c.Sign(harness.Payload).Bytes); !ack.Accepted() {
				g.Fatalf("message %d: %v", i+1, ack)
			}
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Run("idle", func(t *testing.T) {
				t.Parallel()
				g := harness.New(t, broker.Options{Devices: ids})
				send(g, 1) // right after it says that it runs, 2.0 forgets a SIGTERM
				if _, err := g.Backend.Wait(g.Limit(), 1); err != nil {
					g.Fatal(err)
				}
				stopped(g, sig, idle, 0)
			})
			t.Run("with connections", func(t *testing.T) {
				t.Parallel()
				g := harness.New(t, broker.Options{Devices: ids})
				f := g.Fleet(ids)
				d := f.Devices[0]
				g.Accept(g.Connect(d, harness.MQTT5), 1, d.Sign(harness.Payload))
				stopped(g, sig, idle, 0)
			})
			t.Run("backend refuses connections", func(t *testing.T) {
				t.Parallel()
				g := harness.New(t, broker.Options{Devices: ids})
				f := g.Fleet(ids[:1])
				d := f.Devices[0]
				g.Accept(g.Connect(d, harness.MQTT5), 1, d.Sign(harness.Payload))
				_, err := f.Inboxes[0].WaitCount(g.Limit(), d.ResponseTopic(), 1) // until then it may yet fail
				g.Must(err)
				g.Must(g.Backend.Down())
				send(g, 100)
				stopped(g, sig, busy, 100)
				g.Must(g.Backend.Up())
				g.Must(g.Broker.Start())
				_, err = g.Backend.Wait(g.Limit(), 101)
				g.Must(err)
				g.Must(g.Broker.Stop())
				g.ExpectAllDelivered(101)
			})
			t.Run("backend hangs", func(t *testing.T) {
				t.Parallel()
				g := harness.New(t, broker.Options{Devices: ids})
				g.Backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Hang: true} })
				send(g, 100)
				if _, err := g.Backend.Wait(g.Limit(), len(ids)); err != nil {
					g.Fatal(err)
				}
				stopped(g, sig, busy, 100)
			})
			t.Run("backend is slow", func(t *testing.T) {
				t.Parallel()
				g := harness.New(t, broker.Options{Devices: ids})
				g.Backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Delay: 50 * time.Millisecond} })
				send(g, 50)
				stopped(g, sig, busy, 0)
				if n := g.Backend.Count(); n != 50 {
					g.Errorf("the backend got %d messages of 50", n)
				}
			})
		})
	}
}
