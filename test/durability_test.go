package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/suspension"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestKillKeepsAccepted kills the broker while the backend is down. At the next start it delivers in order, also what is
// of a device that is no longer registered, and knows which ids were accepted.
func TestKillKeepsAccepted(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, Settings: map[string]any{"journal.sync": "always"},
	})
	g.no(g.backend.Down())
	var sent []device.Message
	for n := range 20 {
		d := g.device(fmt.Sprintf("sensor_%03d", n%2+1))
		m := d.Sign(fmt.Sprint(n))
		sent = append(sent, m)
		g.expect(d.DataTopic(), m)
		if ack := g.publish(g.connect(d, protocol(n/2%2)), d.DataTopic(), byte(n/4%2+1), m.Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
	}
	g.no(g.broker.Kill())
	g.no(g.broker.SQL("DELETE FROM devices WHERE device_id = ?", "sensor_002"))
	g.no(g.broker.Start())
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: recovered messages=20", "remembered=20", "pending=20", "unregistered=1"))
	g.no(err)
	d := g.device("sensor_001")
	g.refuse(g.connect(d, mqtt5), d.DataTopic(), 1, sent[0], "replay")
	g.no(g.backend.Up())
	for _, m := range sent {
		g.posted(m)
	}
	next := map[string]int{"sensor_001": 0, "sensor_002": 1}
	for _, r := range g.backend.Requests() {
		if string(r.Body) != fmt.Sprint(next[r.Device]) {
			t.Errorf("%s: the backend got %s, want %d", r.Device, r.Body, next[r.Device])
		}
		next[r.Device] += 2
	}
	g.no(g.broker.Stop())
	g.settledAt(20)
	g.no(g.broker.Start())
	g.refuse(g.connect(d, mqtt5), d.DataTopic(), 1, sent[0], "replay")
	g.no(g.broker.Stop())
	g.settledAt(20)
	g.noMore("the backend", g.unexpectedRequests())
}

// TestRedeliveryAcrossKill kills the broker before a device has read its acknowledgement. The device asks again, is told
// success, once, and the backend has the message once.
func TestRedeliveryAcrossKill(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.device("sensor_001")
	for _, p := range bothProtocols {
		for qos := byte(1); qos <= 2; qos++ {
			g.sub(fmt.Sprintf("%v QoS %d", p, qos), func(g *gate) {
				m := packet{qos: qos, id: 7, Message: d.Sign("22")}
				first := g.open(d, p, "the-client", true)
				first.lose(m)
				g.drained(patience) // else it would come twice, under one key
				g.no(g.broker.Kill())
				g.no(g.broker.Start())
				g.open(d, p, "another-client", true).refuse(d.DataTopic(), m, "replay")
				m.dup = true
				second := first.again(true, true)
				second.succeed(m)
				second.refuse(d.DataTopic(), m, "replay") // it has been told
				third := second.again(true, true)
				third.succeed(m) // or not
				g.no(g.broker.Stop())
				g.no(g.broker.Start())
			})
		}
	}
	g.no(g.broker.Stop())
	g.noMore("the backend", g.unexpectedRequests())
	g.settledAt(4)
}

// TestDeadLetters has the backend refuse messages. They are stored, hold nobody up, survive a kill, and are delivered
// when an operator requeues them.
func TestDeadLetters(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	g.backend.Script(func(r *backend.Request) backend.Answer {
		if string(r.Body) == `"poison"` {
			return backend.Answer{Status: http.StatusUnprocessableEntity, Body: []byte("no\x1b\nway")}
		}
		return backend.OK(r)
	})
	c := g.connect(g.device("sensor_001"), mqtt5)
	poison := c.Sign(`"poison"`)
	g.accept(c, 1, poison)
	g.accept(c, 1, c.Sign("1"))
	var letters []deadletter.Letter
	read := func() []deadletter.Letter {
		store, err := deadletter.OpenExisting(g.broker.Path("state/dead.db"))
		g.no(err)
		defer store.Close()
		letters = nil
		for l, err := range store.List(g.limit(), deadletter.Filter{}, 0) {
			g.no(err)
			letters = append(letters, l)
		}
		return letters
	}
	eventually(t, "a dead letter", func() bool { return len(read()) == 1 })
	if l := letters[0]; l.Device != "sensor_001" || l.MessageID != poison.MessageID || l.Reason != "refused" || l.Status != 422 ||
		l.Excerpt != "no\x1b\nway" || l.Attempts != 1 || l.Deaths != 1 || l.Timestamp != poison.Timestamp {
		t.Errorf("the letter is %+v", l)
	}
	g.no(g.broker.Kill())
	g.no(g.broker.Start())
	eventually(t, "the letter, once", func() bool { return len(read()) == 1 && letters[0].Deaths <= 2 })

	g.backend.Script(backend.OK)
	store, err := deadletter.OpenExisting(g.broker.Path("state/dead.db"))
	g.no(err)
	n, err := store.Requeue(g.limit(), deadletter.Filter{IDs: []int64{letters[0].ID}}, time.Now())
	g.no(errors.Join(err, store.Close()))
	if n != 1 {
		t.Fatalf("%d letters requeued", n)
	}
	before := g.backend.Count()
	r, err := g.backend.WaitFor(g.limit(), func(r *backend.Request) bool { return r.Seq > before && r.MessageID() == poison.MessageID })
	g.no(err)
	if string(r.Body) != `"poison"` || r.Header.Get("Idempotency-Key") != fmt.Sprintf("%q", "sensor_001:"+poison.MessageID) {
		t.Errorf("requeued: %s %v", r.Body, r.Header)
	}
	eventually(t, "no letter", func() bool { return len(read()) == 0 })
	g.no(g.broker.Stop())
	stopped := g.broker.Log().Find(0, broker.Contains("bouncer: stopped accepted=3 delivered=2 dead=1 pending=0"))
	if len(stopped) != 1 {
		t.Errorf("stopped: %q", g.broker.Log().Find(0, broker.Contains("bouncer: stopped")))
	}
}

// eventually waits until a condition is met.
func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !met(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// TestGone has the backend answer 410 for one device. Nothing more is sent for it, over a restart too, until an operator
// resumes it.
func TestGone(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.backend.Script(func(r *backend.Request) backend.Answer {
		if r.Device == "sensor_001" {
			return backend.Answer{Status: http.StatusGone}
		}
		return backend.OK(r)
	})
	one, two := g.device("sensor_001"), g.device("sensor_002")
	first, second := one.Sign("1"), one.Sign("2")
	g.accept(g.connect(one, mqtt5), 1, first)
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: backend answered 410 Gone"))
	g.no(err)
	g.expect(one.DataTopic(), second)
	if ack := g.publish(g.connect(one, mqtt5), one.DataTopic(), 1, second.Bytes); !ack.Accepted() {
		t.Error(ack)
	}
	g.accept(g.connect(two, mqtt5), 1, two.Sign("1"))
	g.no(g.broker.Restart())
	g.accept(g.connect(two, mqtt5), 1, two.Sign("2"))
	requests := g.backend.Count()
	if requests != 3 {
		t.Errorf("%d requests, want one of sensor_001 and two of sensor_002", requests)
	}
	g.backend.Script(backend.OK)
	g.no(suspension.Resume(g.broker.Path("state/suspended"), "sensor_001"))
	_, err = g.backend.WaitFor(g.limit(), func(r *backend.Request) bool { return r.Seq > requests && r.MessageID() == first.MessageID })
	g.no(err)
	g.posted(second)
	g.no(g.broker.Stop())
	g.settledAt(4)
}

// TestTraceparent has a publish's user property go to the backend, over a restart too.
func TestTraceparent(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.device("sensor_001")
	many := make([]packets5.User, 15)
	for i := range many {
		many[i] = packets5.User{Key: fmt.Sprint("x", i), Value: strings.Repeat("y", 100)}
	}
	for name, c := range map[string]struct {
		properties []packets5.User
		want       string
	}{
		"none":         {nil, ""},
		"one":          {[]packets5.User{{Key: "traceparent", Value: trace}}, trace},
		"behind":       {append(slices.Clone(many), packets5.User{Key: "traceparent", Value: trace}), trace},
		"too far":      {append(append(slices.Clone(many), many...), packets5.User{Key: "traceparent", Value: trace}), ""},
		"long":         {[]packets5.User{{Key: "traceparent", Value: trace + "x"}}, ""},
		"invalid":      {[]packets5.User{{Key: "traceparent", Value: "00-x: y"}}, ""},
		"empty":        {[]packets5.User{{Key: "traceparent", Value: ""}}, ""},
		"another name": {[]packets5.User{{Key: "Traceparent", Value: trace}}, ""},
	} {
		c5, _, err := d.ConnectRaw5(g.limit())
		g.no(err)
		m := d.Sign("22")
		ack, err := c5.Publish(g.limit(), &packets5.Publish{
			Topic: d.DataTopic(), QoS: 1, PacketID: 1, Payload: m.Bytes, Properties: &packets5.Properties{User: c.properties},
		})
		g.no(err)
		g.no(c5.Close())
		if !ack.Accepted() {
			t.Errorf("%s: %v", name, ack)
		}
		r := g.posted(m)
		if got := strings.Join(r.Header.Values("Traceparent"), ","); got != c.want {
			t.Errorf("%s: the backend got the traceparent %q, want %q", name, got, c.want)
		}
	}
	g.no(g.backend.Down())
	m := d.Sign("23")
	c5, _, err := d.ConnectRaw5(g.limit())
	g.no(err)
	_, err = c5.Publish(g.limit(), &packets5.Publish{
		Topic: d.DataTopic(), QoS: 1, PacketID: 1, Payload: m.Bytes,
		Properties: &packets5.Properties{User: []packets5.User{{Key: "traceparent", Value: trace}}},
	})
	g.no(err)
	g.no(g.broker.Kill())
	g.no(g.broker.Start())
	g.no(g.backend.Up())
	if got := g.posted(m).Header.Get("Traceparent"); got != trace {
		t.Errorf("after a kill: the traceparent is %q", got)
	}
}

// TestBatch has messages of several devices go in few requests, signed, each device's in order, a poisoned one apart.
func TestBatch(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	ids := names(5)
	server := backend.Start(t)
	b, err := broker.New(broker.Options{
		Devices: ids, BackendURL: "http://" + server.Addr() + "/in",
		Settings: map[string]any{"backend.batch": 10, "backend.linger": "200ms", "backend.signing_secret_file": "signing"},
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{T: t, backend: server, broker: b}
	defer func() { g.no(b.Close()) }()
	g.no(b.WriteFile("signing", []byte(secret+"\n")))
	g.no(b.Start())
	verifier, err := standardwebhooks.NewWebhook(secret)
	g.no(err)
	type event struct {
		ID, Source, Subject string
		Data                any
	}
	events := func(r *backend.Request) (all []event) {
		if err := json.Unmarshal(r.Body, &all); err != nil || len(all) == 0 {
			t.Errorf("got %q: %v", r.Body, err)
		}
		return all
	}
	g.backend.Script(func(r *backend.Request) backend.Answer {
		if bytes.Contains(r.Body, []byte(`"poison"`)) {
			return backend.Answer{Status: http.StatusUnprocessableEntity}
		}
		return backend.Answer{Status: http.StatusAccepted}
	})
	var want []string
	for n := range 40 {
		d := g.device(ids[n%len(ids)])
		m := d.Sign(fmt.Sprint(n))
		if n == 13 {
			m = d.Sign(`"poison"`)
		} else {
			want = append(want, fmt.Sprintf("%s %s %v", m.MessageID, "/devices/"+d.ID, n))
		}
		if ack := g.publish(g.connect(d, mqtt5), d.DataTopic(), 1, m.Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
	}
	g.drained(patience)
	g.no(b.Stop())
	var got []string
	last := map[string]float64{}
	for _, r := range g.backend.Requests() {
		if r.Header.Get("Content-Type") != "application/cloudevents-batch+json" {
			t.Errorf("the content type is %q", r.Header.Get("Content-Type"))
		}
		if err := verifier.Verify(r.Body, r.Header); err != nil {
			t.Errorf("the signature: %v", err)
		}
		if bytes.Contains(r.Body, []byte(`"poison"`)) {
			continue // refused
		}
		for _, e := range events(r) {
			n := e.Data.(float64)
			if before, ok := last[e.Source]; ok && n <= before {
				t.Errorf("%s: %v after %v", e.Source, n, before)
			}
			last[e.Source] = n
			got = append(got, fmt.Sprintf("%s %s %v", e.ID, e.Source, n))
		}
	}
	slices.Sort(want)
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the backend took %d messages, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	if stopped := b.Log().Find(0, broker.Contains("bouncer: stopped accepted=40 delivered=39 dead=1 pending=0")); len(stopped) != 1 {
		t.Errorf("stopped: %q", b.Log().Find(0, broker.Contains("bouncer: stopped")))
	}
}
