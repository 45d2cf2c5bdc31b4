// Package test drives the real broker with the real plugin, by subject: one file for each. The rig is test/harness.
package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestEveryReason has each reason that needs no configuration of its own, in either version of MQTT and at every QoS.
func TestEveryReason(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002", "revoked"}})
	one, two := g.Device("sensor_001"), g.Device("sensor_002")
	revoked, stranger := g.Device("revoked"), g.Device("stranger")
	g.Connect(revoked, harness.MQTT311) // the broker forgets a SIGTERM that comes before it serves
	g.SetDisabled("revoked", true)
	g.Must(g.Broker.Restart())
	g.Watch()

	g.EachWay(func(g *harness.Gateway, p harness.Protocol, qos byte) {
		sensor := g.Connect(one, p)
		refuse := func(c *harness.Client, m device.Message, reason string) {
			g.Helper()
			g.Refuse(c, c.DataTopic(), qos, m, reason)
		}
		g.Refuse(sensor, two.DataTopic(), qos, one.Sign("22"), "topic_mismatch")
		g.Refuse(sensor, two.DataTopic(), qos, two.Sign("22"), "topic_mismatch")
		refuse(sensor, one.Sign(`"`+strings.Repeat("x", 65536)+`"`), "too_large")
		refuse(sensor, device.Message{Bytes: []byte("22")}, "malformed")
		refuse(sensor, two.Sign("22"), "identity_mismatch")
		refuse(sensor, one.Sign("22", device.As("sensor_002")), "identity_mismatch")
		refuse(g.Connect(stranger, p), stranger.Sign("22"), "unknown_device")
		refuse(g.Connect(revoked, p), revoked.Sign("22"), "disabled")
		refuse(sensor, one.Sign("22", device.SignedAt(time.Now().Add(-10*time.Minute))), "stale")
		refuse(sensor, one.Sign("22", device.SignedAt(time.Now().Add(10*time.Minute))), "future")
		refuse(sensor, one.Sign("22").Tampered(":22,", ":99,"), "bad_signature")

		// The same connection continues, and what it then sends is delivered, once.
		good := one.Sign("22")
		g.Accept(sensor, qos, good)
		refuse(sensor, good, "replay")
	})
	g.NothingElse("sensor_001")
}

// TestForgeries has the ways to forge that one reason does not exhaust.
func TestForgeries(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.Watch()
	one, two := g.Device("sensor_001"), g.Device("sensor_002")
	sensor, other := g.Connect(one, harness.MQTT5), g.Connect(two, harness.MQTT5)
	raw := func(format string, args ...any) device.Message {
		return device.Message{Bytes: fmt.Appendf(nil, format, args...)}
	}
	for _, m := range []device.Message{
		raw(""),
		raw("\x00"),
		raw("null"),
		raw("{}"),
		raw(`{"temperature":22}`),
		raw("%s%s", one.Sign("1").Bytes, one.Sign("2").Bytes),
		raw("\ufeff%s", one.Sign("1").Bytes),
		raw("[%s]", one.Sign("1").Bytes),
		one.Sign("1").Tampered(`"payload"`, `"Payload"`),
		one.Sign("1").Tampered(`"payload"`, `"unit":"C","payload"`),
		one.Sign("1").Tampered(`"payload"`, `"payload":2,"payload"`),
		one.Sign("1").Tampered(`"payload"`, `"payload":2,"p\u0061yload"`),
		one.Sign(`{"a":1}`).Tampered(`{"a":1}`, `{"a":1,"a":1}`),
		one.Sign(`"a"`).Tampered(`"a"`, "\"\xff\""),
		one.Sign("1").Tampered(`:1,`, `:01,`),
		one.Sign("1").Tampered(`"timestamp":`, `"timestamp":+`),
		one.Sign("1").Tampered(`,"message_id"`, `.0,"message_id"`),
		one.Sign("1", device.WithMessageID(uuid.Nil.String())).Tampered(uuid.Nil.String(), "1"),
		one.Sign("1").Resigned(""),
		one.Sign("1").Resigned(strings.Repeat("g", 64)),
		raw(`{"device_id":"sensor_001","timestamp":0,"message_id":"%s","payload":%s0%s,"signature":"%064d"}`,
			uuid.New(), strings.Repeat("[", 2000), strings.Repeat("]", 2000), 0),
	} {
		g.Refuse(sensor, sensor.DataTopic(), 1, m, "malformed")
	}

	genuine := one.Sign(`{"temperature":22}`)
	stolen := *two
	stolen.Secret = one.Secret
	liar := *one
	liar.Secret = []byte("supersecretkey123")
	renamed := genuine.Tampered(genuine.MessageID, uuid.Nil.String())
	renamed.MessageID = uuid.Nil.String()
	for _, m := range []device.Message{
		renamed,
		genuine.Tampered(":22}", ":99}"),
		genuine.Tampered(fmt.Sprint(genuine.Timestamp), fmt.Sprint(genuine.Timestamp+1)),
		genuine.Tampered(`{"temperature":22}`, `{"temperature":22.0}`),
		genuine.Resigned(strings.Repeat("0", 64)),
		liar.Sign("22"),
	} {
		g.Refuse(sensor, sensor.DataTopic(), 1, m, "bad_signature")
	}
	g.Refuse(other, other.DataTopic(), 1, stolen.Sign("22"), "bad_signature")
	g.Refuse(other, other.DataTopic(), 1, genuine, "identity_mismatch")
	g.Refuse(other, sensor.DataTopic(), 1, genuine, "topic_mismatch")
	g.Refuse(sensor, "device//data", 1, genuine, "topic_mismatch")
	g.Refuse(sensor, `device/sensor_001 reason=accepted "/data`, 1, genuine, "topic_mismatch")

	// None of these attempts keeps the genuine message out. Every later one is a repetition, regardless of who makes it and however
	// it is written.
	g.Accept(sensor, 1, genuine)
	again, old := g.Connect(one, harness.MQTT5), g.Connect(one, harness.MQTT311)
	g.Refuse(sensor, sensor.DataTopic(), 1, genuine, "replay")
	g.Refuse(sensor, sensor.DataTopic(), 2, genuine, "replay")
	g.Refuse(again, sensor.DataTopic(), 1, genuine, "replay")
	g.Refuse(old, sensor.DataTopic(), 0, genuine, "replay")
	g.Refuse(old, sensor.DataTopic(), 1, genuine.Tampered(`{"device_id"`, `{ "device_id"`), "replay")
	for _, id := range []string{genuine.MessageID, strings.ToUpper(genuine.MessageID)} {
		g.Refuse(sensor, sensor.DataTopic(), 1, one.Sign("23", device.WithMessageID(id)), "replay")
	}
	// The ids of one device are none of another's.
	g.Accept(other, 1, two.Sign("22", device.WithMessageID(genuine.MessageID)))
	g.NothingElse("sensor_001")
}

// TestRateLimit has a limit that lets a device send three messages and then one an hour.
func TestRateLimit(t *testing.T) {
	ids := []string{"witness", "one", "two", "three", "four", "five", "six"}
	g := harness.New(t, broker.Options{
		Devices:  ids,
		Settings: map[string]any{"publish.rate": 1.0 / 3600, "publish.burst": 3},
	})
	g.Watch()
	g.EachWay(func(g *harness.Gateway, p harness.Protocol, qos byte) {
		d := g.Device(ids[1])
		ids = ids[1:]
		c := g.Connect(d, p)
		g.Accept(c, qos, d.Sign("1"))
		// A refused message counts as well.
		g.Refuse(c, d.DataTopic(), qos, device.Message{Bytes: []byte("2")}, "malformed")
		g.Accept(g.Connect(d, p), qos, d.Sign("3")) // and the connection does not matter
		g.Refuse(c, d.DataTopic(), qos, d.Sign("4"), "rate_limited")
		g.Refuse(c, d.DataTopic(), qos, d.Sign("5"), "rate_limited")
	})
	g.NothingElse("witness")
}

// TestRateLimitPasses sends a message that came too soon again, until it is accepted: it has not been remembered.
func TestRateLimitPasses(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices:  []string{"sensor_001"},
		Settings: map[string]any{"publish.rate": 2, "publish.burst": 1},
	})
	d := g.Device("sensor_001")
	c := g.Connect(d, harness.MQTT5)
	send := func(m device.Message) bool {
		ack := g.Publish(c, d.DataTopic(), 1, m.Bytes)
		if ack.Accepted() {
			g.Expect(d.DataTopic(), m)
		}
		return ack.Accepted()
	}
	m := d.Sign("22")
	for send(m) { // half a second may pass between two messages on a busy machine
		m = d.Sign("22")
	}
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	for ctx := g.Limit(); !send(m); {
		select {
		case <-every.C:
		case <-ctx.Done():
			t.Fatal("a message that was refused as rate_limited is still refused")
		}
	}
	g.Posted(m)
	g.Must(g.Broker.Stop())
	g.NoMore("the backend", g.UnexpectedRequests())
}

// TestOverloaded fills the journal while the backend does not answer. What is accepted is delivered when it answers
// again. What is refused has not been remembered: under the same id it is accepted once there is room, which is when what
// was delivered is too old to be replayed.
func TestOverloaded(t *testing.T) {
	const (
		journal = 64 << 20
		payload = 8 << 20
	)
	fillers := []string{"filler_1", "filler_2", "filler_3", "filler_4", "filler_5", "filler_6", "filler_7"} // none may fill it alone
	g := harness.New(t, broker.Options{
		Conf:    "max_packet_size 20000000", // 2.1 would take 2,000,000
		Devices: append(fillers, "sensor_001"),
		Settings: map[string]any{
			"publish.max_bytes": 16 << 20, "publish.tolerance": "3s", "backend.timeout": "1m", "journal.max_bytes": journal,
		},
	})
	g.Watch()
	hold := harness.NewHold(g)
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		hold.Wait()
		return backend.OK(r)
	})
	d := g.Device("sensor_001")
	large := `"` + strings.Repeat("x", payload) + `"`
	for i, name := range fillers {
		filler := g.Device(name)
		c := g.Connect(filler, harness.MQTT5)
		m := filler.Sign(large)
		g.Expect(filler.DataTopic(), m)
		if ack := g.Publish(c, filler.DataTopic(), 1, m.Bytes); !ack.Accepted() {
			t.Fatalf("with %d bytes to go: %v", journal-i*payload, ack)
		}
	}
	var refused []device.Message
	g.EachWay(func(g *harness.Gateway, p harness.Protocol, qos byte) {
		m := d.Sign(large)
		refused = append(refused, m)
		g.Refuse(g.Connect(d, p), d.DataTopic(), qos, m, "overloaded")
	})
	// The messages on their way to the monitor come in order: this one is behind all others, and finds room.
	last := d.Sign("22")
	g.Expect(d.DataTopic(), last)
	sensor := g.Connect(d, harness.MQTT5)
	if ack := g.Publish(sensor, d.DataTopic(), 1, last.Bytes); !ack.Accepted() {
		t.Fatalf("a message for which there is room: %v", ack)
	}
	g.Delivered(d.DataTopic(), last.Bytes)
	g.NoMore("the monitor", g.UnexpectedPublishes())
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: the journal cannot store messages; they are refused"))
	g.Must(err)
	_, err = g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: waiting for the backend device=filler_"))
	g.Must(err)

	hold.Release()
	for _, d := range g.AllAccepted() {
		g.Posted(d.Message)
	}
	again := func() device.Message { return d.Sign(large, device.WithMessageID(refused[0].MessageID)) }
	m := again()
	every := time.NewTicker(200 * time.Millisecond)
	defer every.Stop()
	for ctx := g.Limit(); !g.Publish(sensor, d.DataTopic(), 1, m.Bytes).Accepted(); m = again() {
		select {
		case <-every.C:
		case <-ctx.Done():
			t.Fatal("there is no room yet")
		}
	}
	g.Expect(d.DataTopic(), m)
	g.Posted(m)
	g.Must(g.Broker.Stop())
	g.NoMore("the backend", g.UnexpectedRequests())
}
