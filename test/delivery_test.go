package test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// payloads are JSON values that something between device and backend might be tempted to write differently.
var payloads = []string{
	`0`, `-0.0`, `22.0`, `1e5`, `1E+05`, `123456789012345678901234567890`, `{}`, `[]`, `""`, `null`, `true`, `false`,
	`{"temperature":22.50,"humidity":60}`,
	`{"z":[{"b":1,"a":[true,null,"x y"]}],"a":{"k2":{},"k1":[]}}`,
	`{"place":"Zürich °C 😀"}`,
	`{"place":"Z\u00fcrich \u00B0C \ud83d\ude00 \/ \u0000"}`,
	"{ \"b\" :\t[ 1 ,\r\n2 ],\n\n\"a\":  { } }",
}

// TestDelivery has every payload arrive at the subscriber as it was published and at the backend as it was signed, in
// either version of MQTT and at every QoS.
func TestDelivery(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	g.Watch()
	d := g.Device("sensor_001")
	g.EachWay(func(g *harness.Gateway, p harness.Protocol, qos byte) {
		c := g.Connect(d, p)
		for _, payload := range payloads {
			g.Accept(c, qos, d.Sign(payload))
			g.Accept(c, qos, canonical(g, d, payload))
		}
		g.Accept(c, qos, spaced(d.Sign(`{"temperature":22.0}`)))
	})
	g.NothingElse("sensor_001")
}

// canonical is a message signed over the payload's canonical form, as the Python gateway's devices do, and sent as it is.
func canonical(g *harness.Gateway, d *device.Device, payload string) device.Message {
	g.Helper()
	form, err := envelope.AppendCanonical(nil, []byte(payload))
	g.Must(err)
	m := d.Sign(string(form)).Tampered(`"payload":`+string(form), `"payload":`+payload)
	m.Payload = []byte(payload)
	return m
}

// spaced is the message with its members in another order and white space wherever JSON allows it.
func spaced(m device.Message) device.Message {
	members := strings.Split(strings.Trim(string(m.Bytes), "{}"), ",\"")
	for i, member := range members {
		name, value, _ := strings.Cut(member, `":`)
		members[i] = fmt.Sprintf(" \"%s\"\t:\r\n %s ", strings.TrimPrefix(name, `"`), value)
	}
	slices.Reverse(members)
	m.Bytes = []byte("\n{" + strings.Join(members, ",") + "}\r\n ")
	return m
}

// TestRequest asserts everything the backend sees of a message.
func TestRequest(t *testing.T) {
	ids := []string{"sensor_001", "a.b:C-d_9", "..", strings.Repeat("x", 64)}
	g := harness.New(t, broker.Options{Devices: ids})
	for _, id := range ids {
		d := g.Device(id)
		made := time.Now().Add(-time.Minute)
		const messageID = "550E8400-e29b-41d4-a716-446655440000" // the letter case is the device's, the backend gets lower case
		m := d.Sign(`{"temperature":22.0}`, device.SignedAt(made), device.WithMessageID(messageID))
		r := g.Accept(g.Connect(d, harness.MQTT5), 1, m)
		if r.Method != http.MethodPost || r.Path != "/device/"+id+"/data" {
			t.Errorf("got %s %s", r.Method, r.Path)
		}
		want := map[string]string{
			"Content-Type":    "application/json",
			"Content-Length":  "20",
			"Ce-Specversion":  "1.0",
			"Ce-Type":         "mosquitto-bouncer.message.v1",
			"Ce-Id":           "550e8400-e29b-41d4-a716-446655440000",
			"Ce-Source":       "/devices/" + id,
			"Ce-Subject":      "device/" + id + "/data",
			"Ce-Time":         made.UTC().Format("2006-01-02T15:04:05Z"),
			"Idempotency-Key": `"` + id + `:550e8400-e29b-41d4-a716-446655440000"`,
			"Accept-Encoding": "identity",
			"User-Agent":      "mosquitto-bouncer/0.1.0",
		}
		for name, value := range want {
			if got := r.Header.Values(name); len(got) != 1 || got[0] != value {
				t.Errorf("%s: got %s: %q, want %q", id, name, got, value)
			}
		}
		for name := range r.Header {
			if want[name] == "" {
				t.Errorf("%s: got the header %s: %q", id, name, r.Header.Values(name))
			}
		}
	}
	g.NothingElse("sensor_001")
}

// TestNoSubscriber asserts the acknowledgement of a message that only the backend gets.
func TestNoSubscriber(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.Device("sensor_001")
	c := g.Connect(d, harness.MQTT5)
	for qos, want := range []byte{device.Success, device.NoMatchingSubscribers, device.Success} {
		m := d.Sign("22")
		g.Expect(d.DataTopic(), m)
		if ack := g.Publish(c, d.DataTopic(), byte(qos), m.Bytes); ack.Code != want {
			t.Errorf("QoS %d: got %v, want 0x%02x", qos, ack, want)
		}
	}
	g.NothingElse("sensor_001")
}

// TestUngated: every client may publish outside the gated topics.
func TestUngated(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001"}, Conf: "allow_anonymous true", Listeners: harness.WithoutIdentity,
	})
	g.Watch()
	dashboard, d := g.Device("dashboard"), g.Device("sensor_001")
	messages := [][]byte{nil, []byte("hello"), {0, 0xff, '\n'}, d.Sign("22").Bytes, []byte(strings.Repeat("x", 100_000))}
	topics := []string{
		"news", "device", "device/", "device/dashboard", "device/dashboard/state", "device/dashboard/data/", "device/dashboard/x/data",
		"/device/dashboard/data", "Device/dashboard/data", "device/dashboard/Data",
	}
	g.EachWay(func(g *harness.Gateway, p harness.Protocol, qos byte) {
		from := g.Monitor.Inbox()
		clients := []*harness.Client{
			g.Connect(dashboard, p),
			g.ConnectAs(dashboard.Anonymous().Via(g.Broker.Address(1)), p, ""),
			g.ConnectAs(dashboard.Anonymous().Via(g.Broker.Address(1)), p, "operator"),
		}
		var want []string
		before := len(from.All())
		for i, topic := range topics {
			message := messages[i%len(messages)]
			ack := g.Publish(clients[i%len(clients)], topic, qos, message)
			if ack.Code != device.Success {
				g.Errorf("%q: got %v", topic, ack)
			}
			want = append(want, fmt.Sprintf("%s %q", topic, message))
			g.Delivered(topic, message)
		}
		for _, r := range from.All()[before:] {
			text := fmt.Sprintf("%s %q", r.Topic, r.Payload)
			if i := slices.Index(want, text); i >= 0 {
				want = slices.Delete(want, i, i+1)
			} else {
				g.Errorf("got %.200s", text)
			}
		}
	})
	g.NothingElse("sensor_001")
}

// TestRetry has the backend fail once. The message comes again under the same key, and there is one response.
func TestRetry(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"backend.timeout": "1s"}})
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	g.Must(c.Subscribe(g.Limit(), c.ResponseTopic(), 1))
	failures := []backend.Answer{
		{Status: http.StatusInternalServerError, Body: []byte("oops")},
		{Status: http.StatusTooManyRequests},
		{Hang: true},
		{Reset: true},
		{Cut: true, Body: []byte("half of this")},
	}
	for i, failure := range failures {
		m, behind := c.Sign("1"), c.Sign("2")
		var attempts atomic.Int32
		g.Backend.Script(func(r *backend.Request) backend.Answer {
			if r.MessageID() == m.MessageID && attempts.Add(1) == 1 {
				return failure
			}
			return backend.Answer{Body: []byte(r.MessageID())}
		})
		for _, m := range []device.Message{m, behind} {
			if ack := g.Publish(c, c.DataTopic(), 1, m.Bytes); !ack.Accepted() {
				t.Fatalf("%+v: %v", failure, ack)
			}
		}
		if got := g.Response(c, 2*i+1); string(got.Payload) != m.MessageID {
			t.Errorf("%+v: got the response %q", failure, got.Payload)
		}
		if got := g.Response(c, 2*i+2); string(got.Payload) != behind.MessageID {
			t.Errorf("%+v: got the response %q", failure, got.Payload)
		}
		got := g.Backend.Requests()[3*i:]
		if len(got) != 3 || got[0].MessageID() != m.MessageID || got[1].MessageID() != m.MessageID || got[2].MessageID() != behind.MessageID {
			t.Fatalf("%+v: the backend got %d requests", failure, len(got))
		}
		key := `"sensor_001:` + m.MessageID + `"`
		for _, r := range got[:2] {
			if r.Header.Get("Idempotency-Key") != key || !bytes.Equal(r.Body, m.Payload) {
				t.Errorf("%+v: the backend got %q under %s, want %s", failure, r.Body, r.Header.Get("Idempotency-Key"), key)
			}
		}
	}
	g.Must(g.Broker.Stop())
	if got, want := g.Backend.Count(), 3*len(failures); got != want {
		t.Errorf("the backend got %d requests, want %d", got, want)
	}
}

// TestOrder has twenty devices publish at once, as fast as the acknowledgements allow, towards a backend that is slow in
// an uneven way: each device's messages come one after the other, in order, and different devices' at the same time.
func TestOrder(t *testing.T) {
	const devices, messages = 20, 15
	ids := make([]string, devices)
	for i := range ids {
		ids[i] = fmt.Sprintf("sensor_%03d", i)
	}
	g := harness.New(t, broker.Options{Devices: ids})
	g.Watch()
	var (
		mu       sync.Mutex
		busy     = map[string]int{} // requests in progress by device
		overlaps []string
		most     int
	)
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		mu.Lock()
		if busy[r.Device]++; busy[r.Device] > 1 {
			overlaps = append(overlaps, r.Device)
		}
		most = max(most, len(busy))
		mu.Unlock()
		time.Sleep(rand.N(8 * time.Millisecond)) // this is the slowness, not a wait for something
		mu.Lock()
		defer mu.Unlock()
		if busy[r.Device]--; busy[r.Device] == 0 {
			delete(busy, r.Device)
		}
		return backend.Answer{Body: append([]byte("seen "), r.Body...)}
	})
	clients := make([]*harness.Client, devices)
	for i, id := range ids {
		clients[i] = g.Connect(g.Device(id), harness.Protocol(i%2))
		g.Must(clients[i].Subscribe(g.Limit(), clients[i].ResponseTopic(), 1))
	}
	ctx := g.Limit()
	var all errgroup.Group
	for _, c := range clients {
		all.Go(func() error {
			for n := range messages {
				m := c.Sign(fmt.Sprint(n))
				g.Expect(c.DataTopic(), m)
				if ack, err := c.Publish(ctx, c.DataTopic(), byte(1+n%2), false, m.Bytes); err != nil || !ack.Accepted() {
					return fmt.Errorf("%s, message %d: %v, %w", c.ID, n, ack, err)
				}
			}
			return nil
		})
	}
	g.Must(all.Wait())
	for _, c := range clients {
		responses, err := c.Inbox().WaitCount(g.Limit(), c.ResponseTopic(), messages)
		g.Must(err)
		for n, r := range responses {
			if want := fmt.Sprintf("seen %d", n); string(r.Payload) != want {
				t.Fatalf("%s: response %d is %q, want %q", c.ID, n, r.Payload, want)
			}
		}
	}
	next := map[string]int{}
	for _, r := range g.Backend.Requests() {
		if string(r.Body) != fmt.Sprint(next[r.Device]) {
			t.Fatalf("%s: the backend got %s, want %d", r.Device, r.Body, next[r.Device])
		}
		next[r.Device]++
	}
	mu.Lock()
	if len(overlaps) > 0 || most < 2 {
		t.Errorf("up to %d devices at the same time, want several; two requests at a time for %v, want none", most, overlaps)
	}
	mu.Unlock()
	g.NothingElse(ids[0])
	for _, c := range clients {
		for _, r := range c.Inbox().All() {
			if r.Topic != c.ResponseTopic() {
				t.Errorf("%s got %q", c.ID, r.Topic)
			}
		}
	}
}
