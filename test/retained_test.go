package test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// retainedFor returns the retained messages that a new subscriber gets, by topic. The mark that is published afterwards
// ends them.
func (g *gate) retainedFor(filter string) map[string][]byte {
	g.Helper()
	c := g.connect(g.device("dashboard"), mqtt5)
	g.no(c.Subscribe(g.limit(), "site/mark", 1))
	g.no(c.Subscribe(g.limit(), filter, 1))
	g.publish(c, "site/mark", 1, []byte("mark"))
	_, err := c.Inbox().WaitCount(g.limit(), "site/mark", 1)
	g.no(err)
	got := map[string][]byte{}
	for _, r := range c.Inbox().All() {
		if r.Retain {
			got[r.Topic] = r.Payload
		}
	}
	g.no(c.Close())
	return got
}

func (g *gate) expectRetained(when string, want map[string][]byte) {
	g.Helper()
	got := g.retainedFor("#")
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

func retainOn(g *gate, c *client, topic string, payload []byte) {
	g.Helper()
	ack, err := c.Publish(g.limit(), topic, 1, true, payload)
	g.no(err)
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
	g := newGate(t, broker.Options{Devices: ids, Persistence: true, Conf: fmt.Sprintf("check_retain_source %v", checked), WithoutPlugin: true})
	program := buildCtl(t)
	good, bad := g.device("sensor_001"), g.device("sensor_002")
	before := good.Sign("1")
	retainOn(g, g.connect(good, mqtt5), good.DataTopic(), before.Bytes)
	retainOn(g, g.connect(bad, mqtt5), bad.DataTopic(), []byte(`{"device_id":"sensor_002","payload":{"temperature":-99}}`))
	stranger := g.connect(g.device("stranger"), mqtt5)
	captured := g.device("sensor_003").Sign("3") // and put there by somebody else
	retainOn(g, stranger, "device/sensor_003/data", captured.Bytes)
	retainOn(g, stranger, "device/nobody/data", []byte("never registered"))
	retainOn(g, stranger, good.CommandTopic(), []byte("forged"))
	retainOn(g, stranger, good.ResponseTopic(), []byte("forged"))
	retainOn(g, stranger, "site/status", []byte("on"))
	status := []byte("on")

	g.no(g.broker.Stop())
	g.no(g.broker.AddPlugin())
	g.no(g.broker.Start())
	upgraded := map[string][]byte{good.DataTopic(): before.Bytes, "site/status": status}
	if !checked { // the source is not asked about
		upgraded["device/sensor_003/data"] = captured.Bytes
	}
	g.expectRetained("after the upgrade", upgraded)
	own := g.connect(good, mqtt5)
	g.no(own.Subscribe(g.limit(), good.CommandTopic(), 1))
	g.no(own.Subscribe(g.limit(), good.ResponseTopic(), 1))
	m := good.Sign("2")
	g.accept(own, 1, m) // whose response comes after what is retained
	_, err := own.Inbox().WaitCount(g.limit(), good.ResponseTopic(), 1)
	g.no(err)
	for _, r := range own.Inbox().All() {
		if r.Retain {
			t.Errorf("the device gets on %s what was retained there: %q", r.Topic, r.Payload)
		}
	}

	out := g.ctl(program, "retained", "clear", "--device", "sensor_002", "--device", "sensor_003", "--topic", "device/nobody/data")
	if out != "Cleared: topics of 2 devices, 1 topic.\n" {
		t.Errorf("%q", out)
	}
	three := g.device("sensor_003")
	m3 := three.Sign("33")
	retainOn(g, g.connect(three, mqtt5), three.DataTopic(), m3.Bytes)
	g.expectRetained("cleared", map[string][]byte{good.DataTopic(): before.Bytes, three.DataTopic(): m3.Bytes, "site/status": status})

	// A secret that has ended hides nothing that was verified, over a restart either.
	mark := g.broker.Log().Mark()
	g.ctl(program, "device", "rotate", "sensor_001", "--grace", "0", "--out", filepath.Join(t.TempDir(), "new"))
	g.ctl(program, "device", "rotate", "sensor_003", "--grace", "0", "--out", filepath.Join(t.TempDir(), "new"))
	for range 2 {
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed"))
		g.no(err)
	}
	rotated := map[string][]byte{good.DataTopic(): before.Bytes, three.DataTopic(): m3.Bytes, "site/status": status}
	g.expectRetained("rotated", rotated)
	g.no(g.broker.Restart())
	g.expectRetained("rotated and restarted", rotated)

	mark = g.broker.Log().Mark()
	g.ctl(program, "device", "remove", "sensor_001")
	_, err = g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.no(err)
	g.expectRetained("removed", map[string][]byte{three.DataTopic(): m3.Bytes, "site/status": status})
	g.ctl(program, "retained", "clear", "--device", "sensor_001")
	g.no(g.broker.Restart())
	g.expectRetained("cleared of a removed device", map[string][]byte{three.DataTopic(): m3.Bytes, "site/status": status})
}

// TestManyRetainedMessages subscribes to "#" where 10,000 messages are retained that the plugin has not seen, with the
// clients of the broker waiting: once more when it has.
func TestManyRetainedMessages(t *testing.T) {
	const want = 10_000
	filters := []string{"device/+/data"}
	for i := range 15 {
		filters = append(filters, fmt.Sprintf("kind_%d/+/data", i))
	}
	g := newGate(t, broker.Options{
		Quiet: true, Persistence: true, WithoutPlugin: true, Conf: "max_queued_messages 20000\nmax_inflight_messages 0",
		Settings: map[string]any{"publish.topics": filters},
	})
	g.no(g.broker.SQL(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO devices(device_id, shared_secret, created_at) SELECT printf('sensor_%04d', i), 'secret', 1727712000 FROM n`, want/len(filters)))
	c := g.connect(g.device("dashboard"), mqtt5)
	for i := range want / len(filters) {
		id := fmt.Sprintf("sensor_%04d", i+1)
		m := (&device.Device{ID: id, Secret: []byte("secret")}).Sign(`{"temperature":22.5}`)
		for _, filter := range filters {
			_, err := c.Publish(g.limit(), strings.Replace(filter, "+", id, 1), 0, true, m.Bytes)
			g.no(err)
		}
	}
	retainOn(g, c, "site/status", []byte("on"))
	g.no(c.Close())
	g.no(g.broker.Stop())
	g.no(g.broker.AddPlugin())
	g.no(g.broker.Start())
	for _, how := range []string{"by their signatures", "from memory"} {
		c := g.connect(g.device("dashboard"), mqtt5)
		began := time.Now()
		g.no(c.Subscribe(g.limit(), "#", 0))
		took := time.Since(began)
		g.publish(c, "site/mark", 0, []byte("mark"))
		_, err := c.Inbox().WaitCount(g.limit(), "site/mark", 1)
		g.no(err)
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
		g.no(c.Close())
	}
}

// TestRetained has retained publishes: a good one is kept for later subscribers, though its device has gone and its time
// is over; a bad one neither takes its place nor removes it.
func TestRetained(t *testing.T) {
	for _, check := range []bool{false, true} {
		t.Run(fmt.Sprintf("check_retain_source %v", check), func(t *testing.T) {
			g := newGate(t, broker.Options{
				Devices: []string{"sensor_001", "witness"}, Conf: fmt.Sprintf("check_retain_source %v", check),
				Settings: map[string]any{"publish.tolerance": "1s"},
			})
			g.watch()
			d := g.device("sensor_001")
			var m device.Message
			var c *client
			retain := func(m device.Message, qos byte) device.Ack {
				g.Helper()
				ack, err := c.Publish(g.limit(), d.DataTopic(), qos, true, m.Bytes)
				g.no(err)
				return ack
			}
			// kept checks what a new subscriber gets.
			kept := func(want ...[]byte) {
				g.Helper()
				late := g.connect(g.device("dashboard"), mqtt5)
				g.no(late.Subscribe(g.limit(), "device/+/data", 2))
				w := g.device("witness")
				last := w.Sign(`"last"`)
				g.accept(g.connect(w, mqtt5), 1, last)
				_, err := late.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, last.Bytes) })
				g.no(err)
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
			for _, p := range bothProtocols {
				for qos := byte(0); qos <= 2; qos++ {
					c = g.connect(d, p)
					for _, bad := range []device.Message{
						{Bytes: []byte(`{"temperature":22}`)}, {}, d.Sign("22").Tampered(":22,", ":99,"),
					} {
						mark := g.broker.Log().Mark()
						if ack := retain(bad, qos); ack.Code != p.refusal(qos) {
							g.Errorf("a bad retained publish, QoS %d over %v: %v", qos, p, ack)
						}
						_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device=sensor_001 "))
						g.no(err)
						g.refused = append(g.refused, delivery{bad, d.DataTopic(), "bad and retained"})
					}
					if m.Bytes == nil {
						kept()
					} else {
						kept(m.Bytes)
					}
					m = d.Sign(fmt.Sprint(qos))
					g.expect(d.DataTopic(), m)
					if ack := retain(m, qos); !ack.Accepted() {
						g.Errorf("a good retained publish, QoS %d over %v: %v", qos, p, ack)
					}
					g.delivered(d.DataTopic(), m.Bytes)
					kept(m.Bytes)
				}
			}

			// Again until the id is out of the window.
			for every, reason := time.Tick(50*time.Millisecond), ""; reason != "stale"; <-every {
				mark := g.broker.Log().Mark()
				retain(m, 1)
				line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device=sensor_001 "))
				g.no(err)
				g.refused = append(g.refused, delivery{m, d.DataTopic(), "out of the window"})
				if reason = fields(line)["reason"]; reason != "replay" && reason != "stale" {
					g.Fatalf("a repetition: %s", line)
				}
			}
			kept(m.Bytes)
			mark := g.broker.Log().Mark()
			g.no(c.Close())
			_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("Client "+d.ID, "disconnected"))
			g.no(err)
			kept(m.Bytes)
			mark = g.broker.Log().Mark()
			g.setDisabled("sensor_001", true)
			_, err = g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed"))
			g.no(err)
			kept()
			g.nothingElse("witness")
		})
	}
}
