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
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestKillKeepsAccepted kills the broker while the backend is down. At the next start it delivers in order, also what is
// of a device that is no longer registered, and knows which ids were accepted.
func TestKillKeepsAccepted(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, Settings: map[string]any{"journal.sync": "always"},
	})
	g.Must(g.Backend.Down())
	var sent []device.Message
	for n := range 20 {
		d := g.Device(fmt.Sprintf("sensor_%03d", n%2+1))
		m := d.Sign(fmt.Sprint(n))
		sent = append(sent, m)
		g.Expect(d.DataTopic(), m)
		if ack := g.Publish(g.Connect(d, harness.Protocol(n/2%2)), d.DataTopic(), byte(n/4%2+1), m.Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
	}
	g.Must(g.Broker.Kill())
	g.Must(g.Broker.SQL("DELETE FROM devices WHERE device_id = ?", "sensor_002"))
	g.Must(g.Broker.Start())
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: recovered messages=20", "remembered=20", "pending=20", "unregistered=1"))
	g.Must(err)
	d := g.Device("sensor_001")
	g.Refuse(g.Connect(d, harness.MQTT5), d.DataTopic(), 1, sent[0], "replay")
	g.Must(g.Backend.Up())
	for _, m := range sent {
		g.Posted(m)
	}
	next := map[string]int{"sensor_001": 0, "sensor_002": 1}
	for _, r := range g.Backend.Requests() {
		if string(r.Body) != fmt.Sprint(next[r.Device]) {
			t.Errorf("%s: the backend got %s, want %d", r.Device, r.Body, next[r.Device])
		}
		next[r.Device] += 2
	}
	g.Must(g.Broker.Stop())
	g.ExpectAllDelivered(20)
	g.Must(g.Broker.Start())
	g.Refuse(g.Connect(d, harness.MQTT5), d.DataTopic(), 1, sent[0], "replay")
	g.Must(g.Broker.Stop())
	g.ExpectAllDelivered(20)
	g.NoMore("the backend", g.UnexpectedRequests())
}

// TestRedeliveryAcrossKill kills the broker before a device has read its acknowledgement. The device asks again, is told
// success, once, and the backend has the message once.
func TestRedeliveryAcrossKill(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.Device("sensor_001")
	for _, p := range harness.BothProtocols {
		for qos := byte(1); qos <= 2; qos++ {
			g.Sub(fmt.Sprintf("%v QoS %d", p, qos), func(g *harness.Gateway) {
				m := harness.Packet{QoS: qos, ID: 7, Message: d.Sign("22")}
				first := g.Open(d, p, "the-client", true)
				first.Lose(m)
				g.WaitDrained(harness.Patience) // else it would come twice, under one key
				g.Must(g.Broker.Kill())
				g.Must(g.Broker.Start())
				g.Open(d, p, "another-client", true).Refuse(d.DataTopic(), m, "replay")
				m.Dup = true
				second := first.Again(true, true)
				second.Succeed(m)
				second.Refuse(d.DataTopic(), m, "replay") // it has been told
				third := second.Again(true, true)
				third.Succeed(m) // or not
				g.Must(g.Broker.Stop())
				g.Must(g.Broker.Start())
			})
		}
	}
	g.Must(g.Broker.Stop())
	g.NoMore("the backend", g.UnexpectedRequests())
	g.ExpectAllDelivered(4)
}

// TestDeadLetters has the backend refuse messages. They are stored, do not delay other messages, survive a kill, and are delivered
// when an operator requeues them.
func TestDeadLetters(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		if string(r.Body) == `"poison"` {
			return backend.Answer{Status: http.StatusUnprocessableEntity, Body: []byte("no\x1b\nway")}
		}
		return backend.OK(r)
	})
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	poison := c.Sign(`"poison"`)
	g.Accept(c, 1, poison)
	g.Accept(c, 1, c.Sign("1"))
	var letters []deadletter.Letter
	read := func() []deadletter.Letter {
		store, err := deadletter.OpenExisting(g.Broker.Path("state/dead.db"))
		g.Must(err)
		defer store.Close()
		letters = nil
		for l, err := range store.List(g.Limit(), deadletter.Filter{}, 0) {
			g.Must(err)
			letters = append(letters, l)
		}
		return letters
	}
	g.Eventually("a dead letter", func() bool { return len(read()) == 1 })
	if l := letters[0]; l.Device != "sensor_001" || l.MessageID != poison.MessageID || l.Reason != "refused" || l.Status != 422 ||
		l.Excerpt != "no\x1b\nway" || l.Attempts != 1 || l.Deaths != 1 || l.Timestamp != poison.Timestamp {
		t.Errorf("the letter is %+v", l)
	}
	g.Must(g.Broker.Kill())
	g.Must(g.Broker.Start())
	g.WaitDrained(10 * time.Second) // where the kill came before the journal knew of the letter, it is refused again
	g.Eventually("the letter, once", func() bool { return len(read()) == 1 && letters[0].Deaths <= 2 })

	g.Backend.Script(backend.OK)
	store, err := deadletter.OpenExisting(g.Broker.Path("state/dead.db"))
	g.Must(err)
	n, err := store.Requeue(g.Limit(), deadletter.Filter{IDs: []int64{letters[0].ID}}, time.Now())
	g.Must(errors.Join(err, store.Close()))
	if n != 1 {
		t.Fatalf("%d letters requeued", n)
	}
	before := g.Backend.Count()
	r, err := g.Backend.WaitFor(g.Limit(), func(r *backend.Request) bool { return r.Seq > before && r.MessageID() == poison.MessageID })
	g.Must(err)
	if string(r.Body) != `"poison"` || r.Header.Get("Idempotency-Key") != fmt.Sprintf("%q", "sensor_001:"+poison.MessageID) {
		t.Errorf("requeued: %s %v", r.Body, r.Header)
	}
	g.Eventually("no letter", func() bool { return len(read()) == 0 })
	g.Must(g.Broker.Stop())
	stopped := g.Broker.Log().Find(0, broker.Contains("bouncer: stopped accepted=3 delivered=2 dead=1 pending=0"))
	if len(stopped) != 1 {
		t.Errorf("stopped: %q", g.Broker.Log().Find(0, broker.Contains("bouncer: stopped")))
	}
}

// TestGone has the backend answer 410 for one device. Nothing more is sent for it, over a restart too, until an operator
// resumes it.
func TestGone(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		if r.Device == "sensor_001" {
			return backend.Answer{Status: http.StatusGone}
		}
		return backend.OK(r)
	})
	one, two := g.Device("sensor_001"), g.Device("sensor_002")
	first, second := one.Sign("1"), one.Sign("2")
	g.Accept(g.Connect(one, harness.MQTT5), 1, first)
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: backend answered 410 Gone"))
	g.Must(err)
	g.Expect(one.DataTopic(), second)
	if ack := g.Publish(g.Connect(one, harness.MQTT5), one.DataTopic(), 1, second.Bytes); !ack.Accepted() {
		t.Error(ack)
	}
	g.Accept(g.Connect(two, harness.MQTT5), 1, two.Sign("1"))
	g.Must(g.Broker.Restart())
	g.Accept(g.Connect(two, harness.MQTT5), 1, two.Sign("2"))
	requests := g.Backend.Count()
	if requests != 3 {
		t.Errorf("%d requests, want one of sensor_001 and two of sensor_002", requests)
	}
	g.Backend.Script(backend.OK)
	g.Must(suspension.Resume(g.Broker.Path("state/suspended"), "sensor_001"))
	_, err = g.Backend.WaitFor(g.Limit(), func(r *backend.Request) bool { return r.Seq > requests && r.MessageID() == first.MessageID })
	g.Must(err)
	g.Posted(second)
	g.Must(g.Broker.Stop())
	g.ExpectAllDelivered(4)
}

// TestTraceparent has a publish's user property go to the backend, over a restart too.
func TestTraceparent(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.Device("sensor_001")
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
		c5, _, err := d.ConnectRaw5(g.Limit())
		g.Must(err)
		m := d.Sign("22")
		ack, err := c5.Publish(g.Limit(), &packets5.Publish{
			Topic: d.DataTopic(), QoS: 1, PacketID: 1, Payload: m.Bytes, Properties: &packets5.Properties{User: c.properties},
		})
		g.Must(err)
		g.Must(c5.Close())
		if !ack.Accepted() {
			t.Errorf("%s: %v", name, ack)
		}
		r := g.Posted(m)
		if got := strings.Join(r.Header.Values("Traceparent"), ","); got != c.want {
			t.Errorf("%s: the backend got the traceparent %q, want %q", name, got, c.want)
		}
	}
	g.Must(g.Backend.Down())
	m := d.Sign("23")
	c5, _, err := d.ConnectRaw5(g.Limit())
	g.Must(err)
	_, err = c5.Publish(g.Limit(), &packets5.Publish{
		Topic: d.DataTopic(), QoS: 1, PacketID: 1, Payload: m.Bytes,
		Properties: &packets5.Properties{User: []packets5.User{{Key: "traceparent", Value: trace}}},
	})
	g.Must(err)
	g.Must(g.Broker.Kill())
	g.Must(g.Broker.Start())
	g.Must(g.Backend.Up())
	if got := g.Posted(m).Header.Get("Traceparent"); got != trace {
		t.Errorf("after a kill: the traceparent is %q", got)
	}
}

// TestBatch has messages of several devices go in few requests, signed, each device's in order, a poisoned one apart.
func TestBatch(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	ids := harness.DeviceIDs(5)
	server := backend.Start(t)
	b, err := broker.New(broker.Options{
		Devices: ids, BackendURL: "http://" + server.Addr() + "/in",
		Settings: map[string]any{"backend.batch": 10, "backend.linger": "200ms", "backend.signing_secret_file": "signing"},
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &harness.Gateway{T: t, Backend: server, Broker: b}
	defer func() { g.Must(b.Close()) }()
	g.Must(b.WriteFile("signing", []byte(secret+"\n")))
	g.Must(b.Start())
	verifier, err := standardwebhooks.NewWebhook(secret)
	g.Must(err)
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
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		if bytes.Contains(r.Body, []byte(`"poison"`)) {
			return backend.Answer{Status: http.StatusUnprocessableEntity}
		}
		return backend.Answer{Status: http.StatusAccepted}
	})
	var want []string
	for n := range 40 {
		d := g.Device(ids[n%len(ids)])
		m := d.Sign(fmt.Sprint(n))
		if n == 13 {
			m = d.Sign(`"poison"`)
		} else {
			want = append(want, fmt.Sprintf("%s %s %v", m.MessageID, "/devices/"+d.ID, n))
		}
		if ack := g.Publish(g.Connect(d, harness.MQTT5), d.DataTopic(), 1, m.Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
	}
	g.WaitDrained(harness.Patience)
	g.Must(b.Stop())
	var got []string
	last := map[string]float64{}
	for _, r := range g.Backend.Requests() {
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
