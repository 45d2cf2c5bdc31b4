package test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"golang.org/x/sync/errgroup"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// kills is how often TestTorture kills the broker: $KILLS, or 50.
func kills(t *testing.T) int {
	text := os.Getenv("KILLS")
	if text == "" {
		return 50
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("KILLS=%q is not a number of kills", text)
	}
	return n
}

// A sender publishes a device's messages one after the other, numbered from 1, each until it is acknowledged.
type sender struct {
	*device.Device
	next         int
	unanswered   *device.Message  // sent, and perhaps accepted
	acknowledged []device.Message // the latest
	accepted     int              // how many there were in all
	redelivered  int
}

// run publishes over one connection until it breaks.
func (s *sender) run(ctx context.Context) error {
	connecting, cancel := context.WithTimeout(ctx, harness.Patience)
	defer cancel()
	c, _, err := s.ConnectRaw5(connecting, func(c *packets5.Connect) { c.ClientID = "torture-" + s.ID })
	if err != nil {
		return nil // killed meanwhile
	}
	defer c.Conn.Close()
	for id := uint16(1); ; id = max(1, id+1) {
		again := s.unanswered != nil
		if again {
			s.redelivered++
		} else {
			if ctx.Err() != nil {
				return nil
			}
			s.next++
			m := s.Sign(fmt.Sprint(s.next))
			s.unanswered = &m
		}
		waiting, cancel := context.WithTimeout(context.Background(), harness.Patience)
		ack, err := c.Publish(waiting, &packets5.Publish{
			Topic: s.DataTopic(), QoS: 1, PacketID: id, Duplicate: again, Payload: s.unanswered.Bytes,
		})
		cancel()
		if err != nil {
			return nil
		}
		if !ack.Accepted() {
			return fmt.Errorf("%s: message %d, sent again %v: %v", s.ID, s.next, again, ack)
		}
		s.told()
	}
}

// told notes that the message was acknowledged.
func (s *sender) told() {
	const kept = 1000
	if s.acknowledged = append(s.acknowledged, *s.unanswered); len(s.acknowledged) >= 2*kept {
		s.acknowledged = append([]device.Message(nil), s.acknowledged[kept:]...)
	}
	s.accepted++
	s.unanswered = nil
}

// A ledger is what the backend got.
type ledger struct {
	keys  map[string]string // Idempotency-Key by device and payload
	last  map[string]int    // by device, the highest number so far
	again int               // requests for what had come before
}

func (l *ledger) enter(t *testing.T, r *backend.Request) {
	n := 0
	if err := json.Unmarshal(r.Body, &n); err != nil {
		t.Errorf("the backend got %q", r.Body)
		return
	}
	message, key := fmt.Sprint(r.Device, "/", n), r.Header.Get("Idempotency-Key")
	if key != fmt.Sprintf("%q", r.Device+":"+r.MessageID()) {
		t.Errorf("%s came under the key %s", message, key)
	}
	if before, known := l.keys[message]; known {
		if l.again++; before != key {
			t.Errorf("%s came under the key %s, and before under %s", message, key, before)
		}
		return
	}
	l.keys[message] = key
	if n != l.last[r.Device]+1 {
		t.Errorf("%s came after %d", message, l.last[r.Device])
	}
	l.last[r.Device] = n
}

// TestTorture kills the broker at random moments, while devices publish and the backend fails now and then. Whatever was
// acknowledged reaches the backend, under one key, in each device's order; what was accepted before a kill is a replay
// after it; a device that was not told is told when it asks again; and the accounts add up to the end.
func TestTorture(t *testing.T) {
	ids := harness.DeviceIDs(16)
	g := harness.New(t, broker.Options{
		Devices: ids, Quiet: true,

		Settings: map[string]any{"backend.timeout": "1s", "journal.max_bytes": 1 << 30, "response.topic": ""},
	})
	var rnd atomic.Uint64
	g.Backend.Script(func(*backend.Request) backend.Answer {
		switch n := rnd.Add(1); {
		case n%97 == 0:
			return backend.Answer{Status: http.StatusInternalServerError}
		case n%101 == 0:
			return backend.Answer{Reset: true}
		case n%103 == 0:
			return backend.Answer{Cut: true, Body: []byte("half of this")}
		case n%1009 == 0:
			return backend.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"0"}}}
		case n%2003 == 0:
			return backend.Answer{Hang: true}
		case n%2011 == 0:
			return backend.Answer{Delay: 1200 * time.Millisecond} // after the time-out
		case n%307 == 0:
			return backend.Answer{Header: http.Header{"Connection": {"close"}}}
		case n%311 == 0:
			return backend.Answer{Delay: 20 * time.Millisecond}
		}
		return backend.Answer{}
	})
	book := ledger{keys: map[string]string{}, last: map[string]int{}}
	stop := g.TakeRequests(func(r *backend.Request) { book.enter(t, r) })
	senders := make([]*sender, len(ids))
	for i, id := range ids {
		senders[i] = &sender{Device: g.Device(id)}
	}
	rounds := kills(t)
	for round := range rounds {
		torture(g, senders, time.Duration(rand.IntN(250))*time.Millisecond)
		if err := g.Broker.Start(); err != nil {
			t.Fatalf("after kill %d: %v", round+1, err)
		}
		replays(g, senders)
		if t.Failed() {
			t.Fatalf("after kill %d", round+1)
		}
	}
	// Those without an acknowledgement send again, and then no device sends any more.
	accepted, redelivered := 0, 0
	for _, s := range senders {
		for s.unanswered != nil {
			g.Must(s.once(g))
		}
		accepted += s.accepted
		redelivered += s.redelivered
		if s.accepted != s.next {
			t.Errorf("%s: %d messages of %d were acknowledged", s.ID, s.accepted, s.next)
		}
	}
	g.WaitDrained(time.Minute)
	g.Must(g.Broker.Stop())
	g.ExpectAllDelivered(accepted)
	stop()
	for _, s := range senders {
		if book.last[s.ID] != s.accepted {
			t.Errorf("%s: the backend got messages up to %d, %d were acknowledged", s.ID, book.last[s.ID], s.accepted)
		}
	}
	t.Logf("%d kills, %d messages acknowledged, %d of them asked for again; the backend got %d once more", rounds, accepted, redelivered, book.again)
	if accepted < 10*rounds || redelivered < rounds/5 {
		t.Errorf("only %d messages, %d asked for again: too little for a test", accepted, redelivered)
	}
}

// torture lets the senders publish, and kills the broker some time later.
func torture(g *harness.Gateway, senders []*sender, after time.Duration) {
	g.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var all errgroup.Group
	begun := make(chan struct{}, len(senders))
	for _, s := range senders {
		all.Go(func() error { begun <- struct{}{}; return s.run(ctx) })
	}
	<-begun
	time.Sleep(after) // the moment is the point
	g.Must(g.Broker.Kill())
	cancel()
	g.Must(all.Wait())
}

// once has a sender ask again for what was not answered.
func (s *sender) once(g *harness.Gateway) error {
	c, _, err := s.ConnectRaw5(g.Limit(), func(c *packets5.Connect) { c.ClientID = "torture-" + s.ID })
	if err != nil {
		return err
	}
	defer c.Conn.Close()
	s.redelivered++
	ack, err := c.Publish(g.Limit(), &packets5.Publish{Topic: s.DataTopic(), QoS: 1, PacketID: 1, Duplicate: true, Payload: s.unanswered.Bytes})
	if err != nil {
		return err
	}
	if !ack.Accepted() {
		return fmt.Errorf("%s: %v", s.ID, ack)
	}
	s.told()
	return nil
}

// replays publishes messages again that were acknowledged before the broker was killed, from another client id.
func replays(g *harness.Gateway, senders []*sender) {
	g.Helper()
	for range 3 {
		s := senders[rand.IntN(len(senders))]
		if len(s.acknowledged) == 0 {
			continue
		}
		c := g.Connect(s.Device, harness.MQTT5)
		for _, n := range []int{len(s.acknowledged) - 1, rand.IntN(len(s.acknowledged))} {
			m := s.acknowledged[n]
			if ack := g.Publish(c, s.DataTopic(), 1, m.Bytes); ack.Code != device.NotAuthorized && time.Since(time.Unix(m.Timestamp, 0)) < 4*time.Minute {
				g.Errorf("%s: a message that was accepted before the kill: %v", s.ID, ack)
			}
		}
		_ = c.Close()
	}
}
