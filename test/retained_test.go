package test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// retainedFor returns the retained messages that a new subscriber gets, by topic. The mark that is published afterwards
// ends them.
func retainedFor(g *harness.Gateway, filter string) map[string][]byte {
	g.Helper()
	c := g.Connect(g.Device("dashboard"), harness.MQTT5)
	g.Must(c.Subscribe(g.Limit(), "site/mark", 1))
	g.Must(c.Subscribe(g.Limit(), filter, 1))
	g.Publish(c, "site/mark", 1, []byte("mark"))
	_, err := c.Inbox().WaitCount(g.Limit(), "site/mark", 1)
	g.Must(err)
	got := map[string][]byte{}
	for _, r := range c.Inbox().All() {
		if r.Retain {
			got[r.Topic] = r.Payload
		}
	}
	g.Must(c.Close())
	return got
}

func expectRetained(g *harness.Gateway, when string, want map[string][]byte) {
	g.Helper()
	got := retainedFor(g, "#")
	for topic, payload := range want {
		if !bytes.Equal(got[topic], payload) {
			g.Errorf("%s: on %s a new subscriber gets %q, want %q", when, topic, got[topic], payload)
		}
	}
	for topic := range got {
		if _, ok := want[topic]; !ok {
			g.Errorf("%s: on %s a new subscriber gets %q", when, topic, got[topic])
		}
	}
}

func retainOn(g *harness.Gateway, c *harness.Client, topic string, payload []byte) {
	g.Helper()
	ack, err := c.Publish(g.Limit(), topic, 1, true, payload)
	g.Must(err)
	if !ack.Accepted() {
		g.Fatalf("retaining on %s: %v", topic, ack)
	}
}

// TestRetainedBeforeThePlugin upgrades a broker that had no plugin, whose gated topics have retained messages: what is
// not signed by its device is not served, and can be cleared. Then a rotation, a removal, a crash.
func TestRetainedBeforeThePlugin(t *testing.T) {
	for _, checked := range []bool{false, true} {
		t.Run(fmt.Sprintf("check_retain_source %v", checked), func(t *testing.T) { retainedBeforeThePlugin(t, checked) })
	}
}

func retainedBeforeThePlugin(t *testing.T, checked bool) {
	ids := []string{"sensor_001", "sensor_002", "sensor_003"}
	g := harness.New(t, broker.Options{Devices: ids, Persistence: true, Conf: fmt.Sprintf("check_retain_source %v", checked), WithoutPlugin: true})
	program := harness.BuildBouncerctl(t)
	good, bad := g.Device("sensor_001"), g.Device("sensor_002")
	before := good.Sign("1")
	retainOn(g, g.Connect(good, harness.MQTT5), good.DataTopic(), before.Bytes)
	retainOn(g, g.Connect(bad, harness.MQTT5), bad.DataTopic(), []byte(`{"device_id":"sensor_002","payload":{"temperature":-99}}`))
	stranger := g.Connect(g.Device("stranger"), harness.MQTT5)
	captured := g.Device("sensor_003").Sign("3") // and put there by somebody else
	retainOn(g, stranger, "device/sensor_003/data", captured.Bytes)
	retainOn(g, stranger, "device/nobody/data", []byte("never registered"))
	retainOn(g, stranger, good.CommandTopic(), []byte("forged"))
	retainOn(g, stranger, good.ResponseTopic(), []byte("forged"))
	retainOn(g, stranger, "site/status", []byte("on"))
	status := []byte("on")

	g.Must(g.Broker.Stop())
	g.Must(g.Broker.AddPlugin())
	g.Must(g.Broker.Start())
	upgraded := map[string][]byte{good.DataTopic(): before.Bytes, "site/status": status}
	if !checked { // the source is not asked about
		upgraded["device/sensor_003/data"] = captured.Bytes
	}
	expectRetained(g, "after the upgrade", upgraded)
	own := g.Connect(good, harness.MQTT5)
	g.Must(own.Subscribe(g.Limit(), good.CommandTopic(), 1))
	g.Must(own.Subscribe(g.Limit(), good.ResponseTopic(), 1))
	m := good.Sign("2")
	g.Accept(own, 1, m) // whose response comes after what is retained
	_, err := own.Inbox().WaitCount(g.Limit(), good.ResponseTopic(), 1)
	g.Must(err)
	for _, r := range own.Inbox().All() {
		if r.Retain {
			t.Errorf("the device gets on %s what was retained there: %q", r.Topic, r.Payload)
		}
	}

	out := g.Bouncerctl(program, "retained", "clear", "--device", "sensor_002", "--device", "sensor_003", "--topic", "device/nobody/data")
	if out != "Cleared: topics of 2 devices, 1 topic.\n" {
		t.Errorf("%q", out)
	}
	three := g.Device("sensor_003")
	m3 := three.Sign("33")
	retainOn(g, g.Connect(three, harness.MQTT5), three.DataTopic(), m3.Bytes)
	expectRetained(g, "cleared", map[string][]byte{good.DataTopic(): before.Bytes, three.DataTopic(): m3.Bytes, "site/status": status})

	// A secret that has ended hides nothing that was verified, over a restart either.
	mark := g.Broker.Log().Mark()
	g.Bouncerctl(program, "device", "rotate", "sensor_001", "--grace", "0", "--out", filepath.Join(t.TempDir(), "new"))
	g.Bouncerctl(program, "device", "rotate", "sensor_003", "--grace", "0", "--out", filepath.Join(t.TempDir(), "new"))
	for range 2 {
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed"))
		g.Must(err)
	}
	rotated := map[string][]byte{good.DataTopic(): before.Bytes, three.DataTopic(): m3.Bytes, "site/status": status}
	expectRetained(g, "rotated", rotated)
	g.Must(g.Broker.Restart())
	expectRetained(g, "rotated and restarted", rotated)

	mark = g.Broker.Log().Mark()
	g.Bouncerctl(program, "device", "remove", "sensor_001")
	_, err = g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.Must(err)
	expectRetained(g, "removed", map[string][]byte{three.DataTopic(): m3.Bytes, "site/status": status})
	g.Bouncerctl(program, "retained", "clear", "--device", "sensor_001")
	g.Must(g.Broker.Restart())
	expectRetained(g, "cleared of a removed device", map[string][]byte{three.DataTopic(): m3.Bytes, "site/status": status})
}

// TestManyRetainedMessages subscribes to "#" where 10,000 messages are retained that the plugin has not seen, with the
// clients of the broker waiting: again when it has.
func TestManyRetainedMessages(t *testing.T) {
	const want = 10_000
	filters := []string{"device/+/data"}
	for i := range 15 {
		filters = append(filters, fmt.Sprintf("kind_%d/+/data", i))
	}
	g := harness.New(t, broker.Options{
		Quiet: true, Persistence: true, WithoutPlugin: true, Conf: "max_queued_messages 20000\nmax_inflight_messages 0",
		Settings: map[string]any{"publish.topics": filters},
	})
	g.Must(g.Broker.SQL(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO devices(device_id, shared_secret, created_at) SELECT printf('sensor_%04d', i), 'secret', 1727712000 FROM n`, want/len(filters)))
	c := g.Connect(g.Device("dashboard"), harness.MQTT5)
	for i := range want / len(filters) {
		id := fmt.Sprintf("sensor_%04d", i+1)
		m := (&device.Device{ID: id, Secret: []byte("secret")}).Sign(`{"temperature":22.5}`)
		for _, filter := range filters {
			_, err := c.Publish(g.Limit(), strings.Replace(filter, "+", id, 1), 0, true, m.Bytes)
			g.Must(err)
		}
	}
	retainOn(g, c, "site/status", []byte("on"))
	g.Must(c.Close())
	g.Must(g.Broker.Stop())
	g.Must(g.Broker.AddPlugin())
	g.Must(g.Broker.Start())
	for _, how := range []string{"by their signatures", "from memory"} {
		c := g.Connect(g.Device("dashboard"), harness.MQTT5)
		began := time.Now()
		g.Must(c.Subscribe(g.Limit(), "#", 0))
		took := time.Since(began)
		g.Publish(c, "site/mark", 0, []byte("mark"))
		_, err := c.Inbox().WaitCount(g.Limit(), "site/mark", 1)
		g.Must(err)
		got := 0
		for _, r := range c.Inbox().All() {
			if r.Retain {
				got++
			}
		}
		if got != want+1 {
			t.Errorf("%s: %d of %d retained messages are served", how, got, want+1)
		}
		t.Logf("%d retained messages, verified %s: the subscription took %v", want, how, took)
		if took > 2*time.Second { // some 50 ms on an idle machine
			t.Errorf("the subscription took %v", took)
		}
		g.Must(c.Close())
	}
}

// TestRetained has retained publishes: a good one is kept for later subscribers, though its device has gone and its time
// is over; a bad one neither takes its place nor removes it.
func TestRetained(t *testing.T) {
	for _, check := range []bool{false, true} {
		t.Run(fmt.Sprintf("check_retain_source %v", check), func(t *testing.T) {
			g := harness.New(t, broker.Options{
				Devices: []string{"sensor_001", "witness"}, Conf: fmt.Sprintf("check_retain_source %v", check),
				Settings: map[string]any{"publish.tolerance": "1s"},
			})
			g.Watch()
			d := g.Device("sensor_001")
			var m device.Message
			var c *harness.Client
			retain := func(m device.Message, qos byte) device.Ack {
				g.Helper()
				ack, err := c.Publish(g.Limit(), d.DataTopic(), qos, true, m.Bytes)
				g.Must(err)
				return ack
			}
			// kept checks what a new subscriber gets.
			kept := func(want ...[]byte) {
				g.Helper()
				late := g.Connect(g.Device("dashboard"), harness.MQTT5)
				g.Must(late.Subscribe(g.Limit(), "device/+/data", 2))
				w := g.Device("witness")
				last := w.Sign(`"last"`)
				g.Accept(g.Connect(w, harness.MQTT5), 1, last)
				_, err := late.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, last.Bytes) })
				g.Must(err)
				var got [][]byte
				for _, r := range late.Inbox().All() {
					if r.Topic == d.DataTopic() {
						got = append(got, r.Payload)
						if !r.Retain {
							g.Errorf("a retained message came as %+v", r)
						}
					}
				}
				if !slices.EqualFunc(got, want, bytes.Equal) {
					g.Errorf("a new subscriber got %q, want %q", got, want)
				}
			}
			for _, p := range harness.BothProtocols {
				for qos := byte(0); qos <= 2; qos++ {
					c = g.Connect(d, p)
					for _, bad := range []device.Message{
						{Bytes: []byte(`{"temperature":22}`)}, {}, d.Sign("22").Tampered(":22,", ":99,"),
					} {
						mark := g.Broker.Log().Mark()
						if ack := retain(bad, qos); ack.Code != p.Refusal(qos) {
							g.Errorf("a bad retained publish, QoS %d over %v: %v", qos, p, ack)
						}
						_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device=sensor_001 "))
						g.Must(err)
						g.ExpectRefusal(d.DataTopic(), bad, "bad and retained")
					}
					if m.Bytes == nil {
						kept()
					} else {
						kept(m.Bytes)
					}
					m = d.Sign(fmt.Sprint(qos))
					g.Expect(d.DataTopic(), m)
					if ack := retain(m, qos); !ack.Accepted() {
						g.Errorf("a good retained publish, QoS %d over %v: %v", qos, p, ack)
					}
					g.Delivered(d.DataTopic(), m.Bytes)
					kept(m.Bytes)
				}
			}

			// Again until the id is out of the window.
			for every, reason := time.Tick(50*time.Millisecond), ""; reason != "stale"; <-every {
				mark := g.Broker.Log().Mark()
				retain(m, 1)
				line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device=sensor_001 "))
				g.Must(err)
				g.ExpectRefusal(d.DataTopic(), m, "out of the window")
				if reason = harness.Fields(line)["reason"]; reason != "replay" && reason != "stale" {
					g.Fatalf("a repetition: %s", line)
				}
			}
			kept(m.Bytes)
			mark := g.Broker.Log().Mark()
			g.Must(c.Close())
			_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("Client "+d.ID, "disconnected"))
			g.Must(err)
			kept(m.Bytes)
			mark = g.Broker.Log().Mark()
			g.SetDisabled("sensor_001", true)
			_, err = g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed"))
			g.Must(err)
			kept()
			g.NothingElse("witness")
		})
	}
}
