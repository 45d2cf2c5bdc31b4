package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// eachWay runs a subtest for either version of MQTT and every QoS.
func (g *gate) eachWay(run func(g *gate, p protocol, qos byte)) {
	for _, p := range []protocol{mqtt5, mqtt311} {
		for qos := byte(0); qos <= 2; qos++ {
			g.sub(fmt.Sprintf("%v QoS %d", p, qos), func(g *gate) { run(g, p, qos) })
		}
	}
}

// setDisabled disables a registered device or enables it again.
func (g *gate) setDisabled(id string, disabled bool) {
	g.Helper()
	store, err := registry.OpenStore(g.broker.Path("devices.db"))
	g.no(err)
	defer func() { g.no(store.Close()) }()
	g.no(store.SetDisabled(g.limit(), id, disabled))
}

// TestEveryReason has each reason that needs no configuration of its own, in either version of MQTT and at every QoS.
func TestEveryReason(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002", "revoked"}})
	one, two := g.device("sensor_001"), g.device("sensor_002")
	revoked, stranger := g.device("revoked"), g.device("stranger")
	g.connect(revoked, mqtt311) // the broker forgets a SIGTERM that comes before it serves
	g.setDisabled("revoked", true)
	g.no(g.broker.Restart())
	g.watch()

	g.eachWay(func(g *gate, p protocol, qos byte) {
		sensor := g.connect(one, p)
		refuse := func(c *client, m device.Message, reason string) {
			g.Helper()
			g.refuse(c, c.DataTopic(), qos, m, reason)
		}
		g.refuse(sensor, two.DataTopic(), qos, one.Sign("22"), "topic_mismatch")
		g.refuse(sensor, two.DataTopic(), qos, two.Sign("22"), "topic_mismatch")
		refuse(sensor, one.Sign(`"`+strings.Repeat("x", 65536)+`"`), "too_large")
		refuse(sensor, device.Message{Bytes: []byte("22")}, "malformed")
		refuse(sensor, two.Sign("22"), "identity_mismatch")
		refuse(sensor, one.Sign("22", device.As("sensor_002")), "identity_mismatch")
		refuse(g.connect(stranger, p), stranger.Sign("22"), "unknown_device")
		refuse(g.connect(revoked, p), revoked.Sign("22"), "disabled")
		refuse(sensor, one.Sign("22", device.SignedAt(time.Now().Add(-10*time.Minute))), "stale")
		refuse(sensor, one.Sign("22", device.SignedAt(time.Now().Add(10*time.Minute))), "future")
		refuse(sensor, one.Sign("22").Tampered(":22,", ":99,"), "bad_signature")

		// The same connection goes on, and what it then sends is delivered, once.
		good := one.Sign("22")
		g.accept(sensor, qos, good)
		refuse(sensor, good, "replay")
	})
	g.nothingElse("sensor_001")
}

// TestForgeries has the ways to forge that one reason does not exhaust.
func TestForgeries(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	one, two := g.device("sensor_001"), g.device("sensor_002")
	sensor, other := g.connect(one, mqtt5), g.connect(two, mqtt5)
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
		g.refuse(sensor, sensor.DataTopic(), 1, m, "malformed")
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
		g.refuse(sensor, sensor.DataTopic(), 1, m, "bad_signature")
	}
	g.refuse(other, other.DataTopic(), 1, stolen.Sign("22"), "bad_signature")
	g.refuse(other, other.DataTopic(), 1, genuine, "identity_mismatch")
	g.refuse(other, sensor.DataTopic(), 1, genuine, "topic_mismatch")
	g.refuse(sensor, "device//data", 1, genuine, "topic_mismatch")
	g.refuse(sensor, `device/sensor_001 reason=accepted "/data`, 1, genuine, "topic_mismatch")

	// None of these attempts keeps the genuine message out. Every later one is a repetition, whoever makes it and however
	// it is written.
	g.accept(sensor, 1, genuine)
	again, old := g.connect(one, mqtt5), g.connect(one, mqtt311)
	g.refuse(sensor, sensor.DataTopic(), 1, genuine, "replay")
	g.refuse(sensor, sensor.DataTopic(), 2, genuine, "replay")
	g.refuse(again, sensor.DataTopic(), 1, genuine, "replay")
	g.refuse(old, sensor.DataTopic(), 0, genuine, "replay")
	g.refuse(old, sensor.DataTopic(), 1, genuine.Tampered(`{"device_id"`, `{ "device_id"`), "replay")
	for _, id := range []string{genuine.MessageID, strings.ToUpper(genuine.MessageID)} {
		g.refuse(sensor, sensor.DataTopic(), 1, one.Sign("23", device.WithMessageID(id)), "replay")
	}
	// The ids of one device are none of another's.
	g.accept(other, 1, two.Sign("22", device.WithMessageID(genuine.MessageID)))
	g.nothingElse("sensor_001")
}

// withoutIdentity are listeners that do not take the user name from a certificate, beside the one that does.
var withoutIdentity = []string{
	"cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate false",
	"cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username false",
	"",
}

// TestRateLimit has a limit that lets a device send three messages and then one an hour.
func TestRateLimit(t *testing.T) {
	ids := []string{"witness", "one", "two", "three", "four", "five", "six"}
	g := newGate(t, broker.Options{
		Devices:  ids,
		Settings: map[string]any{"publish.rate": 1.0 / 3600, "publish.burst": 3},
	})
	g.watch()
	g.eachWay(func(g *gate, p protocol, qos byte) {
		d := g.device(ids[1])
		ids = ids[1:]
		c := g.connect(d, p)
		g.accept(c, qos, d.Sign("1"))
		// A refused message counts as well.
		g.refuse(c, d.DataTopic(), qos, device.Message{Bytes: []byte("2")}, "malformed")
		g.accept(g.connect(d, p), qos, d.Sign("3")) // and the connection does not matter
		g.refuse(c, d.DataTopic(), qos, d.Sign("4"), "rate_limited")
		g.refuse(c, d.DataTopic(), qos, d.Sign("5"), "rate_limited")
	})
	g.nothingElse("witness")
}

// TestRateLimitPasses sends a message that came too soon again, until it is accepted: it has not been remembered.
func TestRateLimitPasses(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices:  []string{"sensor_001"},
		Settings: map[string]any{"publish.rate": 2, "publish.burst": 1},
	})
	d := g.device("sensor_001")
	c := g.connect(d, mqtt5)
	send := func(m device.Message) bool {
		ack := g.publish(c, d.DataTopic(), 1, m.Bytes)
		if ack.Accepted() {
			g.expect(d.DataTopic(), m)
		}
		return ack.Accepted()
	}
	m := d.Sign("22")
	for send(m) { // half a second may pass between two messages on a busy machine
		m = d.Sign("22")
	}
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	for ctx := g.limit(); !send(m); {
		select {
		case <-every.C:
		case <-ctx.Done():
			t.Fatal("a message that was refused as rate_limited is still refused")
		}
	}
	g.posted(m)
	g.no(g.broker.Stop())
	g.noMore("the backend", g.unexpectedRequests())
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
	g := newGate(t, broker.Options{
		Conf:    "max_packet_size 20000000", // 2.1 would take 2,000,000
		Devices: append(fillers, "sensor_001"),
		Settings: map[string]any{
			"publish.max_bytes": 16 << 20, "publish.tolerance": "3s", "backend.timeout": "1m", "journal.max_bytes": journal,
		},
	})
	g.watch()
	hold := newHold(g)
	g.backend.Script(func(r *backend.Request) backend.Answer {
		hold.wait()
		return backend.OK(r)
	})
	d := g.device("sensor_001")
	large := `"` + strings.Repeat("x", payload) + `"`
	for i, name := range fillers {
		filler := g.device(name)
		c := g.connect(filler, mqtt5)
		m := filler.Sign(large)
		g.expect(filler.DataTopic(), m)
		if ack := g.publish(c, filler.DataTopic(), 1, m.Bytes); !ack.Accepted() {
			t.Fatalf("with %d bytes to go: %v", journal-i*payload, ack)
		}
	}
	var refused []device.Message
	g.eachWay(func(g *gate, p protocol, qos byte) {
		m := d.Sign(large)
		refused = append(refused, m)
		g.refuse(g.connect(d, p), d.DataTopic(), qos, m, "overloaded")
	})
	// The messages on their way to the monitor come in order: this one is behind all others, and finds room.
	last := d.Sign("22")
	g.expect(d.DataTopic(), last)
	sensor := g.connect(d, mqtt5)
	if ack := g.publish(sensor, d.DataTopic(), 1, last.Bytes); !ack.Accepted() {
		t.Fatalf("a message for which there is room: %v", ack)
	}
	g.delivered(d.DataTopic(), last.Bytes)
	g.noMore("the monitor", g.unexpectedPublishes())
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: the journal cannot store messages; they are refused"))
	g.no(err)
	_, err = g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: waiting for the backend device=filler_"))
	g.no(err)

	hold.release()
	for _, d := range g.accepted {
		g.posted(d.Message)
	}
	again := func() device.Message { return d.Sign(large, device.WithMessageID(refused[0].MessageID)) }
	m := again()
	every := time.NewTicker(200 * time.Millisecond)
	defer every.Stop()
	for ctx := g.limit(); !g.publish(sensor, d.DataTopic(), 1, m.Bytes).Accepted(); m = again() {
		select {
		case <-every.C:
		case <-ctx.Done():
			t.Fatal("there is no room yet")
		}
	}
	g.expect(d.DataTopic(), m)
	g.posted(m)
	g.no(g.broker.Stop())
	g.noMore("the backend", g.unexpectedRequests())
}

// A hold keeps the backend from answering.
type hold struct{ released chan struct{} }

// newHold returns a hold that is released at the end of the test, if not before.
func newHold(g *gate) *hold {
	h := &hold{released: make(chan struct{})}
	g.Cleanup(h.release)
	return h
}

func (h *hold) wait() { <-h.released }

func (h *hold) release() {
	select {
	case <-h.released:
	default:
		close(h.released)
	}
}
