package test

import (
	"bytes"
	"context"
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
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/test/backend"
	"mosquitto-bouncer/test/broker"
	"mosquitto-bouncer/test/device"
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
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	g.watch()
	d := g.device("sensor_001")
	g.eachWay(func(g *gate, p protocol, qos byte) {
		c := g.connect(d, p)
		for _, payload := range payloads {
			g.accept(c, qos, d.Sign(payload))
			g.accept(c, qos, canonical(g, d, payload))
		}
		g.accept(c, qos, spaced(d.Sign(`{"temperature":22.0}`)))
	})
	g.nothingElse("sensor_001")
}

// canonical is a message signed over the payload's canonical form, as the Python gateway's devices do, and sent as it is.
func canonical(g *gate, d *device.Device, payload string) device.Message {
	g.Helper()
	form, err := envelope.AppendCanonical(nil, []byte(payload))
	g.no(err)
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
	g := newGate(t, broker.Options{Devices: ids})
	for _, id := range ids {
		d := g.device(id)
		made := time.Now().Add(-time.Minute)
		const messageID = "550E8400-e29b-41d4-a716-446655440000" // the letter case is the device's, the backend gets lower case
		m := d.Sign(`{"temperature":22.0}`, device.SignedAt(made), device.WithMessageID(messageID))
		r := g.accept(g.connect(d, mqtt5), 1, m)
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
	g.nothingElse("sensor_001")
}

// TestNoSubscriber asserts the acknowledgement of a message that only the backend gets.
func TestNoSubscriber(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.device("sensor_001")
	c := g.connect(d, mqtt5)
	for qos, want := range []byte{device.Success, device.NoMatchingSubscribers, device.Success} {
		m := d.Sign("22")
		g.expect(d.DataTopic(), m)
		if ack := g.publish(c, d.DataTopic(), byte(qos), m.Bytes); ack.Code != want {
			t.Errorf("QoS %d: got %v, want 0x%02x", qos, ack, want)
		}
	}
	g.nothingElse("sensor_001")
}

// TestUngated has whatever is published outside the gated topics pass, whoever publishes it.
func TestUngated(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices: []string{"sensor_001"}, Conf: "allow_anonymous true", Listeners: withoutIdentity,
	})
	g.watch()
	dashboard, d := g.device("dashboard"), g.device("sensor_001")
	messages := [][]byte{nil, []byte("hello"), {0, 0xff, '\n'}, d.Sign("22").Bytes, []byte(strings.Repeat("x", 100_000))}
	topics := []string{
		"news", "device", "device/", "device/dashboard", "device/dashboard/state", "device/dashboard/data/", "device/dashboard/x/data",
		"/device/dashboard/data", "Device/dashboard/data", "device/dashboard/Data",
	}
	g.eachWay(func(g *gate, p protocol, qos byte) {
		from := g.monitor.Inbox()
		clients := []*client{
			g.connect(dashboard, p),
			g.connectAs(dashboard.Anonymous().Via(g.broker.Address(1)), p, ""),
			g.connectAs(dashboard.Anonymous().Via(g.broker.Address(1)), p, "operator"),
		}
		var want []string
		before := len(from.All())
		for i, topic := range topics {
			message := messages[i%len(messages)]
			ack := g.publish(clients[i%len(clients)], topic, qos, message)
			if ack.Code != device.Success {
				g.Errorf("%q: got %v", topic, ack)
			}
			want = append(want, fmt.Sprintf("%s %q", topic, message))
			g.delivered(topic, message)
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
	g.nothingElse("sensor_001")
}

// response waits for the nth response of a client that has subscribed to its own.
func (g *gate) response(c *client, n int) device.Received {
	g.Helper()
	got, err := c.Inbox().WaitCount(g.limit(), c.ResponseTopic(), n)
	if err != nil {
		g.Fatalf("%s: %v", c.ID, err)
	}
	return got[n-1]
}

// TestResponses has the backend's answers come back to the device they are for, and to it alone.
func TestResponses(t *testing.T) {
	newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}}).responses()
}

// responses has two devices publish and hears the answers.
func (g *gate) responses() {
	g.watch()
	g.backend.Script(func(r *backend.Request) backend.Answer {
		return backend.Answer{Body: fmt.Appendf(nil, "%s says\x00\xff %s", r.Device, r.Body)}
	})
	for _, p := range []protocol{mqtt5, mqtt311} {
		g.sub(p.String(), func(g *gate) {
			one, two := g.connect(g.device("sensor_001"), p), g.connect(g.device("sensor_002"), p)
			g.no(one.Subscribe(g.limit(), one.ResponseTopic(), 1))
			g.no(two.Subscribe(g.limit(), two.ResponseTopic(), 2))
			for n := 1; n <= 5; n++ {
				for _, c := range []*client{one, two} {
					payload := fmt.Sprintf("[%d,%d]", p, n)
					g.accept(c, byte(n%3), c.Sign(payload))
					got, want := g.response(c, n), c.ID+" says\x00\xff "+payload
					if string(got.Payload) != want || got.QoS != 1 || got.Retain {
						g.Errorf("got %q with QoS %d, retain %v, want %q with QoS 1", got.Payload, got.QoS, got.Retain, want)
					}
				}
			}
			for _, c := range []*client{one, two} {
				if all := c.Inbox().All(); len(all) != 5 {
					g.Errorf("%s got %d messages, want its 5 responses: %v", c.ID, len(all), all)
				}
			}
		})
	}
	g.nothingElse("sensor_001")
	for _, id := range []string{"sensor_001", "sensor_002"} {
		for _, r := range g.monitor.Inbox().On("device/" + id + "/response") {
			if !strings.HasPrefix(string(r.Payload), id+" says") {
				g.Errorf("on %s: %q", r.Topic, r.Payload)
			}
		}
	}
}

// TestNoResponse has the answers that are none of the device's business. The response to the message behind each shows
// that nothing came in its place.
func TestNoResponse(t *testing.T) {
	// A redirection of all there is would count as the backend's state.
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"backend.fatal_statuses": []int{http.StatusFound}}})
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.no(c.Subscribe(g.limit(), c.ResponseTopic(), 1))
	longest := bytes.Repeat([]byte("x"), 64<<10)
	for i, answer := range []backend.Answer{
		{Status: http.StatusOK},
		{Status: http.StatusAccepted},
		{Status: http.StatusNoContent},
		{Status: http.StatusOK, Body: append(longest, 'x')},
		{Status: http.StatusFound, Header: http.Header{"Location": {"/elsewhere"}}, Body: []byte("found")},
		{Status: http.StatusUnprocessableEntity, Body: []byte("not like this")},
	} {
		silent := c.Sign("1")
		g.backend.Script(func(r *backend.Request) backend.Answer {
			if r.MessageID() == silent.MessageID {
				return answer
			}
			return backend.Answer{Status: http.StatusCreated, Body: longest}
		})
		g.accept(c, 1, silent)
		g.accept(c, 1, c.Sign("2"))
		if got := g.response(c, i+1); !bytes.Equal(got.Payload, longest) {
			t.Errorf("status %d, %d bytes: got the response %.100q", answer.Status, len(answer.Body), got.Payload)
		}
	}
	g.nothingElse("sensor_001")
}

// TestRetry has the backend fail once. The message comes again under the same key, and there is one response.
func TestRetry(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"backend.timeout": "1s"}})
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.no(c.Subscribe(g.limit(), c.ResponseTopic(), 1))
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
		g.backend.Script(func(r *backend.Request) backend.Answer {
			if r.MessageID() == m.MessageID && attempts.Add(1) == 1 {
				return failure
			}
			return backend.Answer{Body: []byte(r.MessageID())}
		})
		for _, m := range []device.Message{m, behind} {
			if ack := g.publish(c, c.DataTopic(), 1, m.Bytes); !ack.Accepted() {
				t.Fatalf("%+v: %v", failure, ack)
			}
		}
		if got := g.response(c, 2*i+1); string(got.Payload) != m.MessageID {
			t.Errorf("%+v: got the response %q", failure, got.Payload)
		}
		if got := g.response(c, 2*i+2); string(got.Payload) != behind.MessageID {
			t.Errorf("%+v: got the response %q", failure, got.Payload)
		}
		got := g.backend.Requests()[3*i:]
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
	g.no(g.broker.Stop())
	if got, want := g.backend.Count(), 3*len(failures); got != want {
		t.Errorf("the backend got %d requests, want %d", got, want)
	}
}

// TestResponseTime measures the time from PUBACK to response while the broker is idle. Without the wake-up its thread
// would sleep for 100 ms first; with Nagle's algorithm the response would wait for the acknowledgement of the PUBACK's
// segment, some 43 ms.
func TestResponseTime(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.no(c.Subscribe(g.limit(), c.ResponseTopic(), 1))
	var took []time.Duration
	for n := 1; n <= 20; n++ {
		m := c.Sign("22")
		ack := g.publish(c, c.DataTopic(), 1, m.Bytes)
		acknowledged := time.Now()
		if !ack.Accepted() {
			t.Fatal(ack)
		}
		took = append(took, g.response(c, n).At.Sub(acknowledged))
	}
	slices.Sort(took)
	t.Logf("PUBACK to response: least %v, median %v, most %v", took[0], took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > 40*time.Millisecond {
		t.Errorf("PUBACK to response: median %v, want at most 40ms", median)
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
	g := newGate(t, broker.Options{Devices: ids})
	g.watch()
	var (
		mu       sync.Mutex
		busy     = map[string]int{} // requests in progress by device
		overlaps []string
		most     int
	)
	g.backend.Script(func(r *backend.Request) backend.Answer {
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
	clients := make([]*client, devices)
	for i, id := range ids {
		clients[i] = g.connect(g.device(id), protocol(i%2))
		g.no(clients[i].Subscribe(g.limit(), clients[i].ResponseTopic(), 1))
	}
	ctx := g.limit()
	var all errgroup.Group
	for _, c := range clients {
		all.Go(func() error {
			for n := range messages {
				m := c.Sign(fmt.Sprint(n))
				g.expect(c.DataTopic(), m)
				if ack, err := c.Publish(ctx, c.DataTopic(), byte(1+n%2), false, m.Bytes); err != nil || !ack.Accepted() {
					return fmt.Errorf("%s, message %d: %v, %w", c.ID, n, ack, err)
				}
			}
			return nil
		})
	}
	g.no(all.Wait())
	for _, c := range clients {
		responses, err := c.Inbox().WaitCount(g.limit(), c.ResponseTopic(), messages)
		g.no(err)
		for n, r := range responses {
			if want := fmt.Sprintf("seen %d", n); string(r.Payload) != want {
				t.Fatalf("%s: response %d is %q, want %q", c.ID, n, r.Payload, want)
			}
		}
	}
	next := map[string]int{}
	for _, r := range g.backend.Requests() {
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
	g.nothingElse(ids[0])
	for _, c := range clients {
		for _, r := range c.Inbox().All() {
			if r.Topic != c.ResponseTopic() {
				t.Errorf("%s got %q", c.ID, r.Topic)
			}
		}
	}
}

// inForce makes a change of the registry and publishes as a device until messages are accepted, or refused with this
// reason where one is given: at most a second.
func (g *gate) inForce(c *client, what string, change func(), reason string) {
	g.Helper()
	change()
	changed := time.Now()
	every := time.NewTicker(25 * time.Millisecond) // the log has room for the refusals
	defer every.Stop()
	for ctx := g.limit(); ; {
		mark := g.broker.Log().Mark()
		accepted := g.publish(c, c.DataTopic(), 1, c.Sign("22").Bytes).Accepted()
		if accepted == (reason == "") {
			took := time.Since(changed)
			g.Logf("%s: in force after %v", what, took)
			if took > time.Second {
				g.Errorf("%s: in force after %v, want within a second", what, took)
			}
			if accepted {
				return
			}
			line, err := g.broker.WaitLog(ctx, mark, broker.Contains("bouncer: refused device="))
			g.no(err)
			if fields(line)["reason"] != reason {
				g.Errorf("%s: want reason %s, the log says: %s", what, reason, line)
			}
			return
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			g.Fatalf("%s: accepted is still %v", what, accepted)
		}
	}
}

// TestRegistryChanges changes the registry while the broker runs: with plain SQL in a database of the Python gateway, and
// with bouncerctl's code in one of its own.
func TestRegistryChanges(t *testing.T) {
	type changes struct {
		add     func(id, secret string)
		remove  func(id string)
		disable func(id string, disabled bool)
	}
	run := func(t *testing.T, options broker.Options, with func(*gate) changes) {
		options.Devices = []string{"sensor_001"}
		g := newGate(t, options)
		change := with(g)
		known, added := g.connect(g.device("sensor_001"), mqtt5), g.connect(g.device("sensor_002"), mqtt5)
		kept := known.Sign("22")
		g.accept(known, 1, kept)

		g.inForce(added, "before", func() {}, "unknown_device")
		g.inForce(added, "adding", func() { change.add("sensor_002", string(added.Secret)) }, "")
		// Who is disabled or removed is disconnected, and may come again.
		again := func(c *client) {
			select {
			case <-c.Done():
			case <-time.After(patience):
				g.Fatal("not disconnected")
			}
			c.Client = g.connect(c.Device, mqtt5).Client
		}
		change.disable("sensor_001", true)
		again(known)
		g.inForce(known, "disabling", func() {}, "disabled")
		g.inForce(known, "enabling", func() { change.disable("sensor_001", false) }, "")
		g.inForce(known, "a new secret", func() {
			g.no(g.broker.SQL("UPDATE devices SET shared_secret = ? WHERE device_id = ?", "another", "sensor_001"))
		}, "bad_signature")
		renewed := *known
		renewed.Device = &device.Device{ID: known.ID, Secret: []byte("another")}
		g.inForce(&renewed, "the new secret", func() {}, "")
		change.remove("sensor_001")
		again(known)
		renewed.Client = known.Client
		g.inForce(&renewed, "removing", func() {}, "unknown_device")
		g.inForce(known, "adding again", func() { change.add("sensor_001", string(known.Secret)) }, "")
		// What was accepted before stays accepted: the removal has not made the gateway forget.
		g.refuse(known, known.DataTopic(), 1, kept, "replay")
		g.inForce(added, "the other device, all the while", func() {}, "")
	}
	t.Run("Python gateway", func(t *testing.T) {
		run(t, broker.Options{PythonDatabase: true}, func(g *gate) changes {
			return changes{
				add: func(id, secret string) {
					g.no(g.broker.SQL("INSERT INTO devices(device_id, shared_secret, created_at) VALUES(?, ?, 0)", id, secret))
				},
				remove: func(id string) { g.no(g.broker.SQL("DELETE FROM devices WHERE device_id = ?", id)) },
				disable: func(id string, disabled bool) {
					statement := "DELETE FROM disabled_devices WHERE device_id = ?"
					if disabled {
						statement = "INSERT INTO disabled_devices(device_id, disabled_at) VALUES(?, 0)"
					}
					g.no(g.broker.SQL(statement, id))
				},
			}
		})
	})
	t.Run("bouncerctl", func(t *testing.T) {
		run(t, broker.Options{}, func(g *gate) changes {
			store, err := registry.OpenStore(g.broker.Path("devices.db"))
			g.no(err)
			g.Cleanup(func() { g.no(store.Close()) })
			return changes{
				add:     func(id, secret string) { g.no(store.Add(g.limit(), id, registry.Secret(secret))) },
				remove:  func(id string) { g.no(store.Remove(g.limit(), id)) },
				disable: func(id string, disabled bool) { g.no(store.SetDisabled(g.limit(), id, disabled)) },
			}
		})
	})
}

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
