package test

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/test/backend"
	"mosquitto-bouncer/test/broker"
	"mosquitto-bouncer/test/device"
)

// A lastWill is what a client leaves with the broker when it connects, at QoS 1 and retained.
type lastWill struct {
	topic   string
	message []byte
	delay   uint32 // seconds after the end of the connection; MQTT 5 only
}

// A testator is a connection with a last will, open until it is ended.
type testator struct {
	net.Conn
	device   *device.Device
	protocol protocol
	clientID string
}

// leaveWill connects a device with a last will. The session ends with the connection, unless the will is delayed.
func (g *gate) leaveWill(d *device.Device, p protocol, clientID string, keepAlive uint16, w lastWill) *testator {
	g.Helper()
	t := &testator{device: d, protocol: p, clientID: clientID}
	switch p {
	case mqtt5:
		c, _, err := d.ConnectRaw5(g.limit(), func(c *packets5.Connect) {
			c.ClientID, c.KeepAlive = clientID, keepAlive
			c.WillFlag, c.WillRetain, c.WillQOS, c.WillTopic, c.WillMessage = true, true, 1, w.topic, w.message
			if w.delay > 0 {
				c.WillProperties = &packets5.Properties{WillDelayInterval: &w.delay}
				c.Properties.SessionExpiryInterval = ptr[uint32](3600)
			}
		})
		g.no(err)
		t.Conn = c.Conn
	default:
		c, _, err := d.ConnectRaw3(g.limit(), func(c *packets3.ConnectPacket) {
			c.ClientIdentifier, c.Keepalive = clientID, keepAlive
			c.WillFlag, c.WillRetain, c.WillQos, c.WillTopic, c.WillMessage = true, true, 1, w.topic, w.message
		})
		g.no(err)
		t.Conn = c.Conn
	}
	g.no(t.SetDeadline(time.Time{})) // connecting has left one
	g.Cleanup(func() { t.Close() })
	return t
}

func ptr[T any](v T) *T { return &v }

// takeOver connects with the testator's client id while its connection is open, and waits until the broker has closed
// that.
func (t *testator) takeOver(g *gate, as *device.Device, clean bool) {
	g.Helper()
	var conn net.Conn
	if t.protocol == mqtt5 {
		c, _, err := as.ConnectRaw5(g.limit(), func(c *packets5.Connect) { c.ClientID, c.CleanStart = t.clientID, clean })
		g.no(err)
		conn = c.Conn
	} else {
		c, _, err := as.ConnectRaw3(g.limit(), func(c *packets3.ConnectPacket) { c.ClientIdentifier, c.CleanSession = t.clientID, clean })
		g.no(err)
		conn = c.Conn
	}
	g.Cleanup(func() { conn.Close() })
	_, err := io.Copy(io.Discard, t.Conn)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		g.Fatalf("the connection that was taken over stays open: %v", err)
	}
}

// What the broker shows the plugin of a client whose will it sends.
type situation int

const (
	gone      situation = iota // it has told that the connection ended
	forgotten                  // it told so long ago, and has no certificate of the client's any more
	connected                  // nothing has been told: certificate and all
)

// An ending is a way for a connection to end that makes the broker send the last will.
type ending struct {
	name      string
	protocols []protocol
	situation situation
	keepAlive uint16 // seconds; 0: none
	delay     uint32 // of the wills
	end       func(g *gate, all []*testator)
	stops     bool // the broker, too
}

var bothProtocols, mqtt5Only = []protocol{mqtt5, mqtt311}, []protocol{mqtt5}

func each(end func(g *gate, t *testator)) func(*gate, []*testator) {
	return func(g *gate, all []*testator) {
		g.Helper()
		for _, t := range all {
			end(g, t)
		}
	}
}

func cut(g *gate, t *testator) { g.no(t.Close()) }

func terminate(g *gate, _ []*testator) { g.no(g.broker.Stop()) }

var endings = []ending{
	{name: "connection cut", protocols: bothProtocols, situation: gone, end: each(cut)},
	{name: "protocol error", protocols: bothProtocols, situation: gone, end: each(func(g *gate, t *testator) {
		_, err := t.Write([]byte{0, 0})
		g.no(err)
	})},
	{name: "DISCONNECT with will", protocols: mqtt5Only, situation: gone, end: each(func(g *gate, t *testator) {
		_, err := t.Write([]byte{packets5.DISCONNECT << 4, 1, packets5.DisconnectDisconnectWithWillMessage})
		g.no(err)
	})},
	{name: "keep-alive time-out", protocols: bothProtocols, situation: gone, keepAlive: 1, end: each(func(g *gate, t *testator) {})},
	{name: "take-over, clean start", protocols: bothProtocols, situation: connected, end: each(func(g *gate, t *testator) {
		t.takeOver(g, t.device, true)
	})},
	{name: "take-over", protocols: bothProtocols, situation: connected, end: each(func(g *gate, t *testator) {
		t.takeOver(g, t.device, false)
	})},
	{name: "take-over by another device", protocols: bothProtocols, situation: connected, end: each(func(g *gate, t *testator) {
		t.takeOver(g, g.device("witness"), true)
	})},
	{name: "delay", protocols: mqtt5Only, situation: forgotten, delay: 1, end: each(cut)},
	{name: "SIGTERM", protocols: bothProtocols, situation: connected, end: terminate, stops: true},
	{name: "SIGTERM before delayed wills' connections end", protocols: mqtt5Only, situation: connected, delay: 3600, end: terminate, stops: true},
	{name: "SIGTERM during the delay", protocols: mqtt5Only, situation: forgotten, delay: 3600, stops: true,
		end: func(g *gate, all []*testator) {
			for _, t := range all {
				mark := g.broker.Log().Mark()
				cut(g, t)
				_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("Client "+cmp.Or(t.clientID, t.device.ID)+" "))
				g.no(err)
			}
			terminate(g, all)
		}},
}

// A bequest is a last will on a gated topic, and the device that leaves it, after which it is named.
type bequest struct {
	device string
	topic  string // empty: the device's own
	// message makes the will of the device's client with this id.
	message func(g *gate, d *device.Device, clientID string) device.Message
	// reason is why it is refused when nothing tells it from a publish.
	reason string
	// passes: a publish of it would not be refused.
	passes bool
}

var bequests = []bequest{
	{device: "unsigned", reason: "malformed", message: func(*gate, *device.Device, string) device.Message {
		return device.Message{Bytes: []byte(`{"status":"offline"}`)}
	}},
	{device: "empty", reason: "malformed", message: func(*gate, *device.Device, string) device.Message { return device.Message{} }},
	{device: "forged", reason: "bad_signature", message: func(_ *gate, d *device.Device, _ string) device.Message {
		return d.Sign("22").Tampered(":22,", ":99,")
	}},
	{device: "stale", reason: "stale", message: func(_ *gate, d *device.Device, _ string) device.Message {
		return d.Sign("22", device.SignedAt(time.Now().Add(-10*time.Minute)))
	}},
	{device: "captured", reason: "replay", message: func(g *gate, d *device.Device, _ string) device.Message {
		m := d.Sign("22")
		g.accept(g.connect(d, mqtt5), 1, m)
		return m
	}},
	{device: "repeated", reason: "replay", message: func(g *gate, d *device.Device, clientID string) device.Message {
		m := d.Sign("22")
		c, err := d.ConnectV5(g.limit(), func(c *paho.Connect) { c.ClientID = clientID })
		g.no(err)
		g.accept(&client{Client: c, Device: d, protocol: mqtt5, username: d.ID}, 1, m)
		g.no(c.Close())
		return m
	}},
	{device: "fresh", reason: "forbidden_topic", passes: true, message: func(_ *gate, d *device.Device, _ string) device.Message {
		return d.Sign("22")
	}},
	{device: "meddler", topic: "device/witness/data", reason: "topic_mismatch", message: func(g *gate, _ *device.Device, _ string) device.Message {
		return g.device("witness").Sign("22")
	}},
	{device: "stranger", reason: "unknown_device", message: func(_ *gate, d *device.Device, _ string) device.Message {
		return d.Sign("22")
	}},
}

// registered are the devices of the bequests, and the witness.
func registered() (ids []string) {
	for _, b := range bequests {
		if b.device != "stranger" {
			ids = append(ids, b.device)
		}
	}
	return append(ids, "witness")
}

// TestWills has last wills of every kind on gated topics, sent for every cause there is. None reaches a subscriber that
// is connected, one that is away, or the backend. The wills are retained: none that the plugin can refuse before it is
// stored is there afterwards.
func TestWills(t *testing.T) {
	for _, e := range endings {
		for _, p := range e.protocols {
			t.Run(fmt.Sprintf("%s, %v", e.name, p), func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: registered(), Persistence: true})
				g.wills(e, p, "-testator")
			})
		}
	}
}

// wills leaves the bequests under client ids that are the devices' with the given end, "" where the broker makes the user
// name the client id.
func (g *gate) wills(e ending, p protocol, idEnd string) {
	g.leaveSubscribed("absent", "device/+/data")
	g.watch()
	var all []*testator
	for _, b := range bequests {
		d, clientID := g.device(b.device), b.device+idEnd
		m := b.message(g, d, clientID)
		if b.topic == "" {
			b.topic = d.DataTopic()
		}
		g.refused = append(g.refused, delivery{m, b.topic, "the will " + b.device})
		all = append(all, g.leaveWill(d, p, clientID, e.keepAlive, lastWill{b.topic, m.Bytes, e.delay}))
	}
	mark := g.broker.Log().Mark()
	e.end(g, all)
	for _, b := range bequests {
		line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device="+b.device+" "))
		g.no(err)
		want := [...]string{gone: "forbidden_topic", forgotten: "no_tls_identity", connected: b.reason}[e.situation]
		if e.situation == forgotten && g.broker.Version().AtLeast(2, 1, 0) && fields(line)["reason"] == "forbidden_topic" {
			want = "forbidden_topic" // the end of the connection and the stop came in one round of the loop, without a tick
		}
		if got := fields(line); got["reason"] != want || want == "forbidden_topic" && got["detail"] != "a last will on a gated topic reaches nobody" {
			g.Errorf("the will %q, want the reason %s; the log says: %s", b.device, want, line)
		}
	}

	if e.stops {
		select {
		case <-g.monitor.Done():
		case <-g.limit().Done():
			g.Fatal("the monitor's connection outlives the broker")
		}
		g.noMore("the monitor at the stop", g.unexpectedPublishes())
		g.no(g.broker.Start())
	} else {
		d := g.device("witness")
		g.accept(g.connect(d, mqtt5), 1, d.Sign(`"all wills have been sent"`))
		g.noMore("the monitor", g.unexpectedPublishes())
	}
	g.monitor = g.resume("absent")
	late := g.connect(g.device("late"), mqtt5)
	g.no(late.Subscribe(g.limit(), "device/+/data", 1))
	d := g.device("witness")
	last := d.Sign(`"nothing else"`)
	g.accept(g.connect(d, mqtt5), 1, last)
	g.noMore("the subscriber that was away", g.unexpectedPublishes())

	_, err := late.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, last.Bytes) })
	g.no(err)
	var retained, known []string
	for _, r := range late.Inbox().All() {
		if r.Retain {
			retained = append(retained, r.Topic)
		}
	}
	if e.situation == connected && e.stops {
		// Nothing tells these from publishes but that MESSAGE does not follow. The broker has stored them by then, and a
		// broker that stops takes no order to remove them.
		for _, b := range bequests {
			if b.passes {
				known = append(known, "device/"+b.device+"/data")
			}
		}
	}
	slices.Sort(retained)
	slices.Sort(known)
	if !slices.Equal(retained, known) {
		g.Errorf("retained are the wills on %q, want %q", retained, known)
	}

	g.no(g.broker.Stop())
	g.noMore("the backend", g.unexpectedRequests())
	if refusals := g.broker.Log().Find(0, broker.Contains("bouncer: refused ")); len(refusals) != len(bequests) {
		g.Errorf("%d lines of refusals for %d wills:\n\t%s", len(refusals), len(bequests), strings.Join(refusals, "\n\t"))
	}
}

// leaveSubscribed makes a session that lasts, and leaves it.
func (g *gate) leaveSubscribed(id, filter string) {
	g.Helper()
	c := g.resume(id)
	g.no(c.Subscribe(g.limit(), filter, 2))
	g.no(c.Close())
}

// resume goes on with a session that lasts.
func (g *gate) resume(id string) *device.V5 {
	g.Helper()
	c, err := g.device(id).ConnectV5(g.limit(), func(c *paho.Connect) {
		c.ClientID, c.CleanStart = id, false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: ptr[uint32](3600)}
	})
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	return c
}

// TestWillsWithoutPlugin shows that each ending makes the broker send the will: what TestWills does not see was there to
// be seen.
func TestWillsWithoutPlugin(t *testing.T) {
	for _, e := range endings {
		for _, p := range e.protocols {
			t.Run(fmt.Sprintf("%s, %v", e.name, p), func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{WithoutPlugin: true})
				g.watch()
				d := g.device("fresh")
				w := lastWill{d.DataTopic(), d.Sign("22").Bytes, e.delay}
				e.end(g, []*testator{g.leaveWill(d, p, "testator", e.keepAlive, w)})
				g.delivered(w.topic, w.message)
			})
		}
	}
}

// TestWillsElsewhere has last wills on topics that are not gated. Who is no device may leave one, as without the plugin; a
// device may not, and nobody on the gateway's own topics.
func TestWillsElsewhere(t *testing.T) {
	const sink = "$bouncer/redelivered"
	for _, e := range endings {
		if e.name != "connection cut" && e.name != "take-over" && e.name != "SIGTERM" {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
			g.watch()
			g.no(g.monitor.Subscribe(g.limit(), "$bouncer/#", 1))
			wills := []struct{ client, topic, reason string }{
				{"sensor_001", "site/status", "forbidden_topic"},
				{"sensor_001", "device/sensor_001/response", "forbidden_topic"},
				{"dashboard", "device/sensor_001/response", "forbidden_topic"},
				{"dashboard", "device/sensor_001/command", "forbidden_topic"},
				{"dashboard", sink, ""}, // no line of its own
				{"sensor_001", sink, ""},
				{"dashboard", "site/status", "accepted"},
			}
			last := func(p protocol) string { return fmt.Sprintf("client-%d over %v", len(wills)-1, p) }
			for _, p := range bothProtocols {
				var all []*testator
				for i, w := range wills {
					id := fmt.Sprintf("client-%d over %v", i, p)
					all = append(all, g.leaveWill(g.device(w.client), p, id, 0, lastWill{topic: w.topic, message: []byte(id)}))
				}
				mark := g.broker.Log().Mark()
				e.end(g, all)
				for _, w := range wills {
					if w.reason != "forbidden_topic" {
						continue
					}
					line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device="+w.client+" topic="+w.topic+" "))
					g.no(err)
					if fields(line)["reason"] != w.reason {
						g.Errorf("the will of %s on %s, want the reason %s; the log says: %s", w.client, w.topic, w.reason, line)
					}
				}
				g.delivered("site/status", []byte(last(p)))
				if e.stops {
					break
				}
			}
			for _, r := range g.monitor.Inbox().All() {
				if r.Topic != "site/status" || string(r.Payload) != last(mqtt5) && string(r.Payload) != last(mqtt311) {
					g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
				}
			}
			if n := g.backend.Count(); n > 0 {
				g.Errorf("the backend got %d requests", n)
			}
		})
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

// TestTopicAlias publishes by alias, which the broker resolves before it asks.
func TestTopicAlias(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	one, two := g.device("sensor_001"), g.device("sensor_002")
	for qos := byte(0); qos <= 2; qos++ {
		c, _, err := one.ConnectRaw5(g.limit())
		g.no(err)
		g.Cleanup(func() { c.Conn.Close() })
		id := uint16(0)
		publish := func(topic string, alias uint16, message []byte) device.Ack {
			g.Helper()
			id++
			ack, err := c.Publish(g.limit(), &packets5.Publish{
				Topic: topic, QoS: qos, PacketID: id, Payload: message, Properties: &packets5.Properties{TopicAlias: &alias},
			})
			g.no(err)
			if qos == 2 && ack.Accepted() {
				_, err := c.Release(g.limit(), id)
				g.no(err)
			}
			return ack
		}
		refused := func(topic string, alias uint16, m device.Message, reason string) {
			g.Helper()
			g.refused = append(g.refused, delivery{m, topic, "by alias"})
			mark := g.broker.Log().Mark()
			if ack := publish(topic, alias, m.Bytes); ack.Code != mqtt5.refusal(qos) {
				g.Errorf("QoS %d, %s: %v", qos, reason, ack)
			}
			line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
			g.no(err)
			if got := fields(line); got["reason"] != reason || topic == "" && got["topic"] == "" {
				g.Errorf("QoS %d, want the reason %s; the log says: %s", qos, reason, line)
			}
		}
		accepted := func(topic string, alias uint16) device.Message {
			g.Helper()
			m := one.Sign("22")
			g.expect(one.DataTopic(), m)
			if ack := publish(topic, alias, m.Bytes); !ack.Accepted() {
				g.Errorf("QoS %d: a good message: %v", qos, ack)
			}
			g.delivered(one.DataTopic(), m.Bytes)
			return m
		}
		unsigned := device.Message{Bytes: []byte(`{"temperature":22}`)}
		refused(one.DataTopic(), 1, unsigned, "malformed") // the alias stands all the same
		refused("", 1, unsigned, "malformed")
		m := accepted("", 1)
		refused("", 1, m, "replay")
		refused("site/status", 2, unsigned, "forbidden_topic")
		refused("", 2, one.Sign("22"), "forbidden_topic")
		refused(two.DataTopic(), 1, one.Sign("22"), "topic_mismatch")
		refused("", 1, two.Sign("22"), "topic_mismatch")
		accepted(one.DataTopic(), 1)
		accepted("", 1)
	}
	g.nothingElse("sensor_001")
}

// tlsListener are the settings of a listener as the first one is.
const tlsListener = "cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username true\n"

// TestMountPoint has listeners that put something before each topic, which may make a gated topic of one that is not, and
// the other way round.
func TestMountPoint(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices:   []string{"sensor_001"},
		Settings:  map[string]any{"publish.topics": []string{"device/+/data", "site/device/+/data"}},
		Listeners: []string{tlsListener + "mount_point site/", tlsListener + "mount_point device/", tlsListener + "mount_point other/"},
	})
	g.watch()
	d := g.device("sensor_001")
	unsigned := device.Message{Bytes: []byte("22")}
	g.eachWay(func(g *gate, p protocol, qos byte) {
		for i, mount := range []struct{ prefix, topic string }{
			{"site/", "device/sensor_001/data"}, {"device/", "sensor_001/data"},
		} {
			c := g.connect(d.Via(g.broker.Address(i+1)), p)
			send := func(m device.Message, reason string) {
				g.Helper()
				mark := g.broker.Log().Mark()
				if reason == "accepted" {
					g.expect(mount.prefix+mount.topic, m)
				} else {
					g.refused = append(g.refused, delivery{m, mount.topic, "through a mount point"})
				}
				ack := g.publish(c, mount.topic, qos, m.Bytes)
				if reason == "accepted" {
					if !ack.Accepted() {
						g.Errorf("a good message: %v", ack)
					}
					g.delivered(mount.prefix+mount.topic, m.Bytes)
					return
				}
				if ack.Code != p.refusal(qos) {
					g.Errorf("%s: %v", reason, ack)
				}
				line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
				g.no(err)
				if got := fields(line); got["reason"] != reason || got["topic"] != mount.prefix+mount.topic {
					g.Errorf("want %s on %s; the log says: %s", reason, mount.prefix+mount.topic, line)
				}
			}
			good := d.Sign("22")
			send(unsigned, "malformed")
			send(good, "accepted")
			send(good, "replay")
		}
		// A mount point that no filter has leaves the device without a topic, and not with one more.
		mark := g.broker.Log().Mark()
		g.refused = append(g.refused, delivery{unsigned, "other/device/sensor_001/data", "through a mount point"})
		if ack := g.publish(g.connect(d.Via(g.broker.Address(3)), p), d.DataTopic(), qos, unsigned.Bytes); ack.Code != p.refusal(qos) {
			g.Errorf("a topic that is gated no longer: %v", ack)
		}
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device=sensor_001 topic=other/device/sensor_001/data reason=forbidden_topic "))
		g.no(err)
	})
	// All that the monitor got on the mounted topics was accepted.
	left := slices.Clone(g.accepted)
	for _, r := range g.monitor.Inbox().All() {
		i := slices.IndexFunc(left, func(d delivery) bool { return d.topic == r.Topic && bytes.Equal(d.Bytes, r.Payload) })
		switch {
		case i >= 0:
			left = slices.Delete(left, i, i+1)
		case !strings.HasSuffix(r.Topic, "/response"):
			g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
		}
	}
	g.noMore("the monitor", missing(left))
	g.no(g.broker.Stop())
	g.noMore("the backend", g.unexpectedRequests())
}

// TestWebsockets has verdicts and last wills of clients that come by websockets.
func TestWebsockets(t *testing.T) {
	g := newGate(t, broker.Options{Devices: registered(), Listeners: []string{"protocol websockets\n" + tlsListener}})
	g.watch()
	d, w := g.device("fresh"), g.device("witness")
	for qos := byte(0); qos <= 2; qos++ {
		c := g.connectWebsocket(d, qos == 2)
		g.refuse(c, d.DataTopic(), qos, device.Message{Bytes: []byte(`{"temperature":22}`)}, "malformed")
		g.refuse(c, w.DataTopic(), qos, d.Sign("22"), "topic_mismatch")
		m := d.Sign("22")
		g.accept(c, qos, m)
		g.refuse(c, d.DataTopic(), qos, m, "replay")
	}

	// A will that is good as a publish, the worst of them, for each cause.
	leave := func(id string) (*testator, device.Message) {
		m := d.Sign("22")
		g.refused = append(g.refused, delivery{m, d.DataTopic(), id})
		conn := g.dialWebsocket(d)
		p := packets3.NewControlPacket(packets3.Connect).(*packets3.ConnectPacket)
		p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.CleanSession, p.Keepalive = "MQTT", 4, id, true, 30
		p.WillFlag, p.WillQos, p.WillTopic, p.WillMessage = true, 1, d.DataTopic(), m.Bytes
		g.no(p.Write(conn))
		answer, err := packets3.ReadPacket(conn)
		g.no(err)
		if connack, ok := answer.(*packets3.ConnackPacket); !ok || connack.ReturnCode != 0 {
			g.Fatalf("connecting by a websocket: %v", answer)
		}
		return &testator{Conn: conn, device: d, protocol: mqtt311, clientID: id}, m
	}
	refused := func(mark int, m device.Message) {
		g.Helper()
		line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
		g.no(err)
		if got := fields(line); got["reason"] != "forbidden_topic" || got["detail"] != "a last will on a gated topic reaches nobody" {
			g.Errorf("the will %s; the log says: %s", m.MessageID, line)
		}
	}
	for i, end := range []func(*gate, *testator){cut, func(g *gate, t *testator) { t.takeOver(g, d, true) }} {
		c, m := leave(fmt.Sprint("testator-", i))
		mark := g.broker.Log().Mark()
		end(g, c)
		refused(mark, m)
	}
	g.accept(g.connect(w, mqtt5), 1, w.Sign("22"))
	_, m := leave("testator at the stop")
	mark := g.broker.Log().Mark()
	g.no(g.broker.Stop())
	refused(mark, m)
	<-g.monitor.Done()
	g.noMore("the monitor", g.unexpectedPublishes())
	g.noMore("the backend", g.unexpectedRequests())
}

// dialWebsocket opens a websocket to the second listener. It is cut at the end of the (sub)test.
func (g *gate) dialWebsocket(d *device.Device) net.Conn {
	g.Helper()
	conn, err := mqtt.NewWebsocket("wss://"+g.broker.Address(1)+"/mqtt", d.TLS(), patience, nil, &mqtt.WebsocketOptions{})
	g.no(err)
	g.Cleanup(func() { conn.Close() })
	return conn
}

// connectWebsocket connects to the second listener, by MQTT 3.1.1.
func (g *gate) connectWebsocket(d *device.Device, cleanSession bool) *client {
	g.Helper()
	c, err := d.ConnectV3(g.limit(), func(o *mqtt.ClientOptions) {
		o.SetCleanSession(cleanSession)
		o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return g.dialWebsocket(d), nil })
	})
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	return &client{Client: c, Device: d, protocol: mqtt311, username: d.ID}
}

// TestQoS2 has what QoS 2 allows between PUBLISH and PUBREL.
func TestQoS2(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	d, other := g.device("sensor_001"), g.device("sensor_002")
	bad := device.Message{Bytes: []byte(`{"temperature":22}`)}
	for _, p := range bothProtocols {
		g.sub(p.String(), func(g *gate) {
			open := func(as *device.Device) *exchange { return g.open(as, p, "persistent", false) }
			refused := func(c *exchange, id uint16, dup bool, m device.Message, reason string) {
				g.Helper()
				c.refuse(d.DataTopic(), packet{qos: 2, id: id, dup: dup, Message: m}, reason)
			}
			accepted := func(c *exchange, id uint16) device.Message {
				g.Helper()
				m := d.Sign("22")
				g.expect(d.DataTopic(), m)
				if ack := c.publish(d.DataTopic(), packet{qos: 2, id: id, Message: m}); ack.Code != device.Success {
					g.Errorf("a good message: PUBREC %v", ack)
				}
				return m
			}
			// What was refused is not there to be released.
			c := open(d)
			refused(c, 1, false, bad, "malformed")
			c.release(1)
			// A repetition, or another message under its id, neither takes the place of what waits for its release, nor
			// keeps it back.
			m := accepted(c, 2)
			refused(c, 2, true, m, "replay")
			refused(c, 2, true, bad, "malformed")
			c.release(2)
			g.delivered(d.DataTopic(), m.Bytes)
			c.release(2)
			// What was accepted reaches subscribers, whoever takes the session over before the release.
			m = accepted(c, 3)
			c.cut()
			c = open(d)
			c.release(3)
			g.delivered(d.DataTopic(), m.Bytes)
			m = accepted(c, 4)
			c = open(d)
			c.release(4)
			g.delivered(d.DataTopic(), m.Bytes)
			m = accepted(c, 4)
			c = open(other)
			c.release(4)
			g.delivered(d.DataTopic(), m.Bytes)
			refused(c, 4, false, m, "topic_mismatch")
			c.release(4)
			g.open(d, p, "persistent", true).cut()
		})
	}
	g.nothingElse("sensor_002")
}

// newGateWith is newGate with files in the broker's directory that must be there when it starts; {dir} in them stands for
// it.
func newGateWith(t *testing.T, options broker.Options, files map[string]string) *gate {
	t.Helper()
	g := &gate{T: t, backend: backend.Start(t)}
	options.BackendURL = g.backend.URL()
	var err error
	g.broker, err = broker.New(options)
	g.no(err)
	t.Cleanup(func() {
		if p := g.broker.Process(); p != nil && p.Ended() == nil {
			if err := g.broker.Stop(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Logf("the broker's log:\n\t%s", strings.Join(g.broker.Log().Lines(0), "\n\t"))
		}
		if err := g.broker.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, text := range files {
		g.no(g.broker.WriteFile(name, []byte(strings.ReplaceAll(text, "{dir}", g.broker.Dir))))
	}
	g.no(g.broker.Start())
	return g
}

// throughBridge publishes on another broker, from which a bridge brings everything: what it brings on gated topics and on
// the gateway's own is refused, for these reasons, and the rest is not the plugin's business.
func (g *gate) throughBridge(other *broker.Broker, gatedReason string) {
	g.Helper()
	publisher, err := other.Device("publisher")
	g.no(err)
	c, err := publisher.ConnectV5(g.limit())
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	d := g.device("sensor_001")
	for qos := byte(0); qos <= 2; qos++ {
		mark := g.broker.Log().Mark()
		var want, got []string
		for _, sent := range []struct {
			topic  string
			m      device.Message
			reason string
		}{
			{d.DataTopic(), device.Message{Bytes: []byte(`{"temperature":22}`)}, gatedReason},
			{d.DataTopic(), d.Sign("22"), gatedReason},
			{"device/sensor_001/response", device.Message{Bytes: []byte(`{"status":"ok"}`)}, "forbidden_topic"},
			{"device/sensor_001/command", device.Message{Bytes: []byte(`{"open":true}`)}, "forbidden_topic"},
		} {
			g.refused = append(g.refused, delivery{sent.m, sent.topic, "through the bridge"})
			want = append(want, sent.reason+" "+sent.topic)
			_, err = c.Publish(g.limit(), sent.topic, qos, qos == 1, sent.m.Bytes)
			g.no(err)
		}
		// Behind them all, and allowed.
		marker := fmt.Appendf(nil, "QoS %d", qos)
		_, err = c.Publish(g.limit(), "site/status", qos, false, marker)
		g.no(err)
		g.delivered("site/status", marker)
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("Sending PUBLISH to monitor-", "'site/status'"))
		g.no(err)
		for _, line := range g.broker.Log().Find(mark, broker.Contains("bouncer: refused ")) {
			got = append(got, fields(line)["reason"]+" "+fields(line)["topic"])
		}
		if !slices.Equal(got, want) {
			g.Errorf("QoS %d: refused were %q, want %q", qos, got, want)
		}
	}
	for _, r := range g.monitor.Inbox().All() {
		if r.Topic == d.ResponseTopic() || r.Topic == "device/sensor_001/command" {
			g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
		}
	}
	g.nothingElse("witness")
}

// subscribedTo waits until a bridge has subscribed with the broker.
func (g *gate) subscribedTo(b *broker.Broker) {
	g.Helper()
	_, err := b.WaitLog(g.limit(), 0, broker.Contains("Sending SUBACK"))
	g.no(err)
}

// TestBridgeOfOurs has the broker itself fetch everything from another one. It does not ask for access then, and with
// per_listener_settings it asks nothing at all: that is refused at the start.
func TestBridgeOfOurs(t *testing.T) {
	other := broker.Start(t, broker.Options{WithoutPlugin: true, Conf: "allow_anonymous true", Listeners: []string{""}})
	conf := "connection other\naddress " + other.Address(1) + "\ntopic # in 2\nnotifications false"
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}, Conf: conf})
	g.watch()
	g.subscribedTo(other)
	g.throughBridge(other, "no_tls_identity")

	b := refuse(t, broker.Options{BouncerTOML: sound, PerListenerSettings: true, Conf: conf}, nil)
	const want = ": topic # in 2: with per_listener_settings true no plugin is asked about what a bridge brings; "
	if b.Log().Count(0, broker.Contains("bouncer: "+b.Path("mosquitto.conf"), want)) != 1 {
		t.Errorf("the log does not say %q", want)
	}
}

// TestBridgeTakesWills has a bridge that takes everything elsewhere. The broker does not ask what the bridge may read, so
// that it gets a will that nothing tells from a publish, and the empty message that removes it; it gets no other.
func TestBridgeTakesWills(t *testing.T) {
	other := newGate(t, broker.Options{WithoutPlugin: true, Conf: "allow_anonymous true", Listeners: []string{""}})
	other.watch()
	g := newGate(t, broker.Options{
		Devices: registered(), Conf: "connection other\naddress " + other.broker.Address(1) + "\ntopic # out 1\nnotifications false",
	})
	g.watch()
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("Received CONNACK on connection"))
	g.no(err)
	var known []string
	for _, b := range bequests {
		d, clientID := g.device(b.device), b.device+"-testator"
		m := b.message(g, d, clientID)
		if b.topic == "" {
			b.topic = d.DataTopic()
		}
		g.refused = append(g.refused, delivery{m, b.topic, "the will " + b.device})
		mark := g.broker.Log().Mark()
		g.leaveWill(d, mqtt5, clientID, 0, lastWill{topic: b.topic, message: m.Bytes}).takeOver(g, d, true)
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device="+b.device+" ", "reason="+b.reason+" "))
		g.no(err)
		if b.passes {
			known = append(known, b.topic+" "+string(m.Bytes), b.topic+" ")
		}
	}
	d := g.device("witness")
	last := d.Sign(`"last"`)
	g.accept(g.connect(d, mqtt5), 1, last)
	other.delivered(d.DataTopic(), last.Bytes)
	var got []string
	left := slices.Clone(g.accepted)
	for _, r := range other.monitor.Inbox().All() {
		i := slices.IndexFunc(left, func(d delivery) bool { return d.topic == r.Topic && bytes.Equal(d.Bytes, r.Payload) })
		switch {
		case i >= 0:
			left = slices.Delete(left, i, i+1)
		case !strings.HasSuffix(r.Topic, "/response"):
			got = append(got, r.Topic+" "+string(r.Payload))
		}
	}
	g.noMore("the other broker", missing(left))
	if !slices.Equal(got, known) {
		g.Errorf("the other broker got besides what was accepted\n\t%q, want\n\t%q", got, known)
	}
	g.nothingElse("witness")
}

// TestBridgeOfOthers has another broker bring everything, as a client with a certificate of its own.
func TestBridgeOfOthers(t *testing.T) {
	for _, version := range []string{"mqttv311", "mqttv50"} {
		t.Run(version, func(t *testing.T) {
			g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
			g.watch()
			other, err := broker.New(broker.Options{WithoutPlugin: true, Conf: strings.Join([]string{
				"connection gateway", "address " + g.broker.Address(0), "topic # out 2", "bridge_protocol_version " + version,
				"bridge_cafile {dir}/gateway.crt", "bridge_certfile {dir}/bridge.crt", "bridge_keyfile {dir}/bridge.key",
			}, "\n")})
			g.no(err)
			g.Cleanup(func() { g.no(other.Close()) })
			cert, key, err := g.broker.CA().IssueDevice("bridge", time.Now(), time.Hour)
			g.no(err)
			for name, pem := range map[string][]byte{"gateway.crt": g.broker.CA().CertPEM(), "bridge.crt": cert, "bridge.key": key} {
				g.no(other.WriteFile(name, pem))
			}
			g.no(other.Start())
			_, err = g.broker.WaitLog(g.limit(), 0, broker.Contains("u'bridge'"))
			g.no(err)
			g.throughBridge(other, "topic_mismatch")
			g.no(other.Stop())
		})
	}
}

// subscribe asks for a subscription and returns the broker's answer, 0x80 or above for a refusal.
func (g *gate) subscribe(c *client, filter string) byte {
	g.Helper()
	switch c := c.Client.(type) {
	case *device.V5:
		suback, err := c.Paho.Subscribe(g.limit(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
		if suback == nil {
			g.Fatalf("subscribing to %q: %v", filter, err)
		}
		return suback.Reasons[0]
	case *device.V3:
		token := c.Paho.Subscribe(filter, 1, nil).(*mqtt.SubscribeToken)
		select {
		case <-token.Done():
			for _, granted := range token.Result() { // the key of a shared one is without $share
				return granted
			}
		case <-g.limit().Done():
			g.Fatalf("subscribing to %q: no answer", filter)
		}
	}
	panic("neither version of MQTT")
}

// refuseSubscription subscribes a device to what it may not read.
func (g *gate) refuseSubscription(c *client, filter string) {
	g.Helper()
	g.refused = append(g.refused, delivery{topic: filter, what: "subscription"})
	mark := g.broker.Log().Mark()
	want := map[protocol]byte{mqtt5: 0x87, mqtt311: 0x80}[c.protocol]
	if got := g.subscribe(c, filter); got != want {
		g.Errorf("%s subscribes to %q over %v: 0x%02x, want 0x%02x", c.username, filter, c.protocol, got, want)
	}
	line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
	g.no(err)
	if got := fields(line); got["reason"] != "forbidden_topic" || got["topic"] != filter || got["device"] != c.username {
		g.Errorf("%s subscribes to %q; the log says: %s", c.username, filter, line)
	}
}

// lenient is an acl_file that lets everyone do everything.
const lenient = "topic readwrite #\npattern readwrite #\n"

// TestConfinement has devices reach beyond their own topics, and others for the gateway's, with the access lists as open
// as can be.
func TestConfinement(t *testing.T) {
	for _, access := range []struct {
		others string
		acl    bool
	}{{"auto", false}, {"auto", true}, {"allow", true}, {"defer", true}} {
		t.Run(fmt.Sprintf("others %s, acl_file %v", access.others, access.acl), func(t *testing.T) {
			options := broker.Options{Devices: []string{"sensor_001", "sensor_002", "revoked"}, Settings: map[string]any{"acl.others": access.others}}
			if access.acl {
				options.Conf = "acl_file {dir}/acl"
			}
			g := newGateWith(t, options, map[string]string{"acl": lenient})
			g.watch()
			g.disable("revoked", true)
			hello := device.Message{Bytes: []byte("hello")}
			for _, p := range bothProtocols {
				one, two := g.connect(g.device("sensor_001"), p), g.connect(g.device("sensor_002"), p)
				revoked, dashboard := g.connect(g.device("revoked"), p), g.connect(g.device("dashboard"), p)
				for _, filter := range []string{
					"#", "+/+/+", "device/#", "device/+/data", "device/+/response", "device/sensor_001/#", "device/sensor_001/+",
					"+/sensor_001/response", "device/sensor_001/data", "device/sensor_001/response/#", "device/sensor_002/data",
					"device/sensor_002/response", "device/sensor_002/command", "Device/sensor_001/response", "/device/sensor_001/response",
					"$share/group/device/sensor_001/response", "$share/group/#", "$SYS/#", "site/status",
				} {
					g.refuseSubscription(one, filter)
				}
				g.refuseSubscription(revoked, "device/+/data")
				g.refuseSubscription(revoked, "device/sensor_001/response")
				revoked.disabled = true
				for _, topic := range []string{revoked.ResponseTopic(), revoked.CommandTopic()} {
					g.refused = append(g.refused, delivery{topic: topic, what: "subscription"})
					mark := g.broker.Log().Mark()
					if got := g.subscribe(revoked, topic); got < 0x80 {
						g.Errorf("a disabled device subscribes to %s: 0x%02x", topic, got)
					}
					_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device=revoked", "topic="+topic, "reason=disabled"))
					g.no(err)
				}
				for _, c := range []*client{one, two} {
					for _, topic := range []string{"response", "command"} {
						if got := g.subscribe(c, "device/"+c.username+"/"+topic); got > 2 {
							g.Errorf("%s subscribes to its own %s: 0x%02x", c.username, topic, got)
						}
					}
				}
				for i, topic := range []string{
					"site/status", "device/sensor_001", "device/sensor_001/", "device/sensor_001/data/", "device/sensor_001/data/more",
					"Device/sensor_001/data", "/device/sensor_001/data", "device/sensor_001/response", "device/sensor_001/command",
					"device/sensor_002/response", "device/sensor_002/command",
				} {
					g.refuse(one, topic, byte(i%3), hello, "forbidden_topic")
				}
				g.refuse(revoked, "site/status", 1, hello, "forbidden_topic")
				for qos := byte(0); qos <= 2; qos++ {
					for _, topic := range []string{"device/sensor_001/response", "device/sensor_001/command", "device/nobody/response", "device//command"} {
						g.refuse(dashboard, topic, qos, hello, "forbidden_topic")
					}
				}

				// Who is no device is left alone, and a device has what is its own.
				for _, filter := range []string{"#", "device/+/data", "device/sensor_001/response", "$share/group/site/#"} {
					if got := g.subscribe(dashboard, filter); got > 2 {
						g.Errorf("a dashboard subscribes to %q: 0x%02x", filter, got)
					}
				}
				status := fmt.Appendf(nil, "status over %v", p)
				g.publish(dashboard, "site/status", 1, status)
				g.delivered("site/status", status)
				g.accept(one, 1, one.Sign("22"))
				_, err := one.Inbox().WaitCount(g.limit(), one.ResponseTopic(), 1)
				g.no(err)
				g.accept(two, 1, two.Sign("22"))
				_, err = two.Inbox().WaitCount(g.limit(), two.ResponseTopic(), 1)
				g.no(err)
				for _, c := range []*client{one, two, revoked} {
					for _, r := range c.Inbox().All() {
						if r.Topic != c.ResponseTopic() {
							g.Errorf("%s got on %q: %q", c.username, r.Topic, r.Payload)
						}
					}
				}
			}
			for _, r := range g.monitor.Inbox().All() {
				if bytes.Equal(r.Payload, hello.Bytes) {
					g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
				}
			}
			g.nothingElse("sensor_001")
		})
	}
}

// TestRemovedDevice takes a device out of the registry while it is connected: that gives it no rights that it had not.
func TestRemovedDevice(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	g.watch()
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.accept(c, 1, c.Sign("22"))
	store, err := registry.OpenStore(g.broker.Path("devices.db"))
	g.no(err)
	mark := g.broker.Log().Mark()
	g.no(store.Remove(g.limit(), "sensor_001"))
	g.no(store.Close())
	_, err = g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.no(err)
	// It has been disconnected, and may come again.
	for _, c := range []*client{g.connect(c.Device, mqtt5), g.connect(c.Device, mqtt311)} {
		for _, sent := range []struct {
			topic, reason string
			m             device.Message
		}{
			{c.DataTopic(), "unknown_device", c.Sign("22")},
			{"site/status", "forbidden_topic", device.Message{Bytes: []byte("22")}},
		} {
			g.refused = append(g.refused, delivery{sent.m, sent.topic, "of a removed device"})
			mark := g.broker.Log().Mark()
			if ack := g.publish(c, sent.topic, 1, sent.m.Bytes); ack.Code != c.protocol.refusal(1) {
				g.Errorf("a removed device publishes to %s: %v", sent.topic, ack)
			}
			line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
			g.no(err)
			if fields(line)["reason"] != sent.reason {
				g.Errorf("a removed device publishes to %s, want the reason %s; the log says: %s", sent.topic, sent.reason, line)
			}
		}
		g.refuseSubscription(c, "#")
		g.refuseSubscription(c, c.ResponseTopic())
	}
	g.nothingElse("witness")
}

// TestOlderSubscriptions has subscriptions that were made when their client was allowed to, and sessions taken over from
// another device: what is delivered is decided anew each time.
func TestOlderSubscriptions(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	one := g.connect(g.device("sensor_001"), mqtt5)
	late := g.connect(g.device("late"), mqtt5)
	for _, filter := range []string{"#", "device/+/data", "device/sensor_001/response", "$share/group/#"} {
		g.no(late.Subscribe(g.limit(), filter, 1))
	}
	g.leaveSubscribed("absent", "#")
	before := one.Sign(`"before"`)
	g.accept(one, 1, before)
	_, err := late.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, before.Bytes) })
	g.no(err)

	for _, id := range []string{"late", "absent"} {
		mark := g.broker.Log().Mark()
		_, err := g.broker.AddDevice(id)
		g.no(err)
		_, err = g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed added=1 "))
		g.no(err)
	}
	seen := len(late.Inbox().All())
	after := one.Sign(`"after"`)
	g.accept(one, 1, after)
	g.no(late.Subscribe(g.limit(), late.ResponseTopic(), 1))
	g.accept(late, 1, late.Sign(`"own"`))
	_, err = late.Inbox().WaitCount(g.limit(), late.ResponseTopic(), 1)
	g.no(err)
	for _, r := range late.Inbox().All()[seen:] {
		if r.Topic != late.ResponseTopic() {
			g.Errorf("a device got on %q by an older subscription: %q", r.Topic, r.Payload)
		}
	}
	// What waited for a client that has become a device.
	absent := g.resume("absent")
	g.no(absent.Subscribe(g.limit(), "device/absent/response", 1))
	d := g.device("absent")
	g.accept(&client{Client: absent, Device: d, protocol: mqtt5, username: d.ID}, 1, d.Sign(`"own"`))
	_, err = absent.Inbox().WaitCount(g.limit(), d.ResponseTopic(), 1)
	g.no(err)
	for _, r := range absent.Inbox().All() {
		if r.Topic != d.ResponseTopic() {
			g.Errorf("a device got on %q what waited for it: %q", r.Topic, r.Payload)
		}
	}

	// A session with its subscription to another device's responses.
	owner := g.open(g.device("sensor_001"), mqtt5, "session", false)
	g.no(owner.v5.Send(g.limit(), &packets5.Subscribe{
		PacketID: 1, Properties: &packets5.Properties{},
		Subscriptions: []packets5.SubOptions{{Topic: owner.device.ResponseTopic(), QoS: 1}},
	}))
	_, err = owner.v5.Next(g.limit())
	g.no(err)
	owner.cut()
	thief, err := g.device("sensor_002").ConnectV5(g.limit(), func(c *paho.Connect) { c.ClientID, c.CleanStart = "session", false })
	g.no(err)
	g.Cleanup(func() { _ = thief.Close() })
	g.no(one.Subscribe(g.limit(), one.ResponseTopic(), 1))
	g.accept(one, 1, one.Sign("22"))
	_, err = one.Inbox().WaitCount(g.limit(), one.ResponseTopic(), 1)
	g.no(err)
	g.no(thief.Subscribe(g.limit(), "device/sensor_002/response", 1))
	two := g.device("sensor_002")
	g.accept(&client{Client: thief, Device: two, protocol: mqtt5, username: two.ID}, 1, two.Sign("22"))
	_, err = thief.Inbox().WaitCount(g.limit(), two.ResponseTopic(), 1)
	g.no(err)
	for _, r := range thief.Inbox().All() {
		if r.Topic != two.ResponseTopic() {
			g.Errorf("a device got on %q by another's session: %q", r.Topic, r.Payload)
		}
	}
	g.nothingElse("sensor_001")
}

// TestOthers has the ways to say who decides about what is not the gateway's concern, and what it comes to for a dashboard
// that an acl_file, if there is one, confines to site/#.
func TestOthers(t *testing.T) {
	const (
		acl     = "user dashboard\ntopic readwrite site/#\nuser monitor\ntopic read #\n"
		include = "include_dir {dir}/persistence" // a directory that is there, and empty
	)
	type rights struct{ site, elsewhere bool }
	for _, c := range []struct {
		name, others, conf string
		files              map[string]string
		settled            string // what the log says, after "settled "
		want               rights
		// reload is added to this file before SIGHUP.
		reload, added string
		resettled     string
		then          rights
	}{
		{
			name: "auto, nothing else", others: "auto",
			settled: `others=allow why="the broker's configuration has neither acl_file nor another plugin"`, want: rights{true, true},
		},
		{
			name: "auto, acl_file", others: "auto", conf: "acl_file {dir}/acl",
			settled: `others=defer why="{dir}/mosquitto.conf:5: acl_file {dir}/acl"`, want: rights{true, false},
		},
		{
			name: "auto, acl_file in include_dir", others: "auto", conf: include,
			files:   map[string]string{"persistence/access.conf": "# who may what\nacl_file {dir}/acl\n"},
			settled: `others=defer why="{dir}/persistence/access.conf:2: acl_file {dir}/acl"`, want: rights{true, false},
		},
		{
			name: "defer, nothing else", others: "defer",
			settled: `others=defer why="set in bouncer.toml"`, want: rights{false, false},
		},
		{
			name: "defer, acl_file", others: "defer", conf: "acl_file {dir}/acl",
			settled: `others=defer why="set in bouncer.toml"`, want: rights{true, false},
		},
		{
			name: "allow, acl_file", others: "allow", conf: "acl_file {dir}/acl",
			settled: `others=allow why="set in bouncer.toml"`, want: rights{true, true},
		},
		{
			name: "acl_file added", others: "auto",
			settled: `others=allow `, want: rights{true, true},
			reload: "mosquitto.conf", added: "acl_file {dir}/acl\n",
			resettled: `: acl_file {dir}/acl"`, then: rights{true, false},
		},
		{
			name: "acl_file added in include_dir", others: "auto", conf: include,
			settled: `others=allow `, want: rights{true, true},
			reload: "persistence/access.conf", added: "acl_file {dir}/acl\n",
			resettled: `others=defer why="{dir}/persistence/access.conf:1: acl_file {dir}/acl"`, then: rights{true, false},
		},
		{
			name: "acl_file added to a broker told to allow", others: "allow",
			settled: `others=allow why="set in bouncer.toml"`, want: rights{true, true},
			reload: "mosquitto.conf", added: "acl_file {dir}/acl\n",
			resettled: `others=allow why="set in bouncer.toml"`, then: rights{true, true},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"acl": acl}
			maps.Copy(files, c.files)
			g := newGateWith(t, broker.Options{
				Devices: []string{"sensor_001"}, Conf: c.conf, Settings: map[string]any{"acl.others": c.others},
			}, files)
			here := func(text string) string { return strings.ReplaceAll(text, "{dir}", g.broker.Dir) }
			ignores := g.broker.Version().AtLeast(2, 1, 0) // nothing is left to settle: the acl_file, if any, decides
			settled := func(mark int, want string) {
				t.Helper()
				if ignores {
					want = `others=ignore why="Mosquitto 2.1 can leave a plugin out"`
				}
				line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: access to other topics is settled "))
				g.no(err)
				if !strings.Contains(line, here(want)) {
					t.Errorf("the log says\n\t%s\nwhich has not\n\t%s", line, here(want))
				}
			}
			check := func(want rights, aclFile bool) {
				t.Helper()
				if ignores {
					want = rights{true, !aclFile}
				}
				dashboard := g.connect(g.device("dashboard"), mqtt5)
				for topic, allowed := range map[string]bool{"site/status": want.site, "plant/status": want.elsewhere} {
					if ack := g.publish(dashboard, topic, 1, []byte("22")); ack.Accepted() != allowed {
						t.Errorf("a dashboard publishes to %s: %v", topic, ack)
					}
				}
				d := g.device("sensor_001")
				c := g.connect(d, mqtt5)
				g.accept(c, 1, d.Sign("22"))
				g.refuse(c, d.DataTopic(), 1, device.Message{Bytes: []byte("22")}, "malformed")
				g.refuse(c, "site/status", 1, device.Message{Bytes: []byte("22")}, "forbidden_topic")
				g.refuseSubscription(c, "#")
			}
			settled(0, c.settled)
			check(c.want, strings.Contains(c.conf+c.files["persistence/access.conf"], "acl_file"))
			if c.reload != "" {
				before, err := os.ReadFile(g.broker.Path(c.reload))
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				g.no(g.broker.WriteFile(c.reload, append(before, here(c.added)...)))
				mark := g.broker.Log().Mark()
				g.no(g.broker.Signal(syscall.SIGHUP))
				settled(mark, c.resettled)
				check(c.then, true)
			}
			g.nothingElse("sensor_001")
		})
	}
}

// TestPerListenerSettings has the plugin under one listener or two. On 2.0.11 it is then never called at regular times.
func TestPerListenerSettings(t *testing.T) {
	const pluginLines = "plugin {plugin}\nplugin_opt_config_file {dir}/bouncer.toml\n"
	for _, c := range []struct {
		name      string
		listeners []string
	}{
		{"one listener", nil},
		{"two listeners", []string{tlsListener + pluginLines}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newGate(t, broker.Options{
				Devices: []string{"sensor_001", "witness"}, PerListenerSettings: true, Listeners: c.listeners,
			})
			g.watch()
			d := g.device("sensor_001")
			var last device.Message
			for i := range 1 + len(c.listeners) {
				via := d.Via(g.broker.Address(i))
				g.eachWay(func(g *gate, p protocol, qos byte) {
					sensor := g.connect(via, p)
					g.refuse(sensor, d.DataTopic(), qos, device.Message{Bytes: []byte("22")}, "malformed")
					g.refuse(sensor, "device/witness/data", qos, d.Sign("22"), "topic_mismatch")
					g.refuse(sensor, "site/status", qos, device.Message{Bytes: []byte("22")}, "forbidden_topic")
					g.refuseSubscription(sensor, "#")
					if i > 0 { // what came by the first listener is a replay by the other
						g.refuse(sensor, d.DataTopic(), qos, last, "replay")
					}
					last = d.Sign("22")
					g.accept(sensor, qos, last)
					g.refuse(sensor, d.DataTopic(), qos, last, "replay")
				})
				for _, end := range []func(*gate, *testator){cut, func(g *gate, t *testator) { t.takeOver(g, via, true) }} {
					m := d.Sign("22")
					w := g.leaveWill(via, mqtt5, fmt.Sprint("testator-", i), 0, lastWill{topic: d.DataTopic(), message: m.Bytes})
					g.refused = append(g.refused, delivery{m, d.DataTopic(), "a will"})
					mark := g.broker.Log().Mark()
					end(g, w)
					line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
					g.no(err)
					// Without ticks the plugin does not know for how long a client has been gone, but it has no certificate.
					if got := fields(line)["reason"]; got != "forbidden_topic" && got != "no_tls_identity" {
						g.Errorf("a will: the log says: %s", line)
					}
				}
			}

			if g.broker.Version().AtLeast(2, 0, 15) {
				g.ticksWithListenerSettings(d)
			} else {
				g.neverTicks(d)
			}
			g.nothingElse("witness")
			for _, line := range []string{"bouncer: ready ", "bouncer: stopped"} {
				if n := g.broker.Log().Count(0, broker.Contains(line)); n != 1 {
					g.Errorf("%d lines with %q, want 1: the listeners share one gateway", n, line)
				}
			}
		})
	}
	t.Run("two configuration files", func(t *testing.T) {
		t.Parallel()
		b := refuse(t, broker.Options{
			BouncerTOML: sound, PerListenerSettings: true,
			Listeners: []string{tlsListener + "plugin {plugin}\nplugin_opt_config_file {dir}/other.toml"},
		}, func(t *testing.T, b *broker.Broker) {
			write(t, b, "other.toml", strings.ReplaceAll(sound, "{dir}", b.Dir), 0o600)
		})
		want := fmt.Sprintf("bouncer: plugin_opt_config_file is %q for one listener and %q for another; all listeners share one gateway, so name the same file",
			b.Path("bouncer.toml"), b.Path("other.toml"))
		if b.Log().Count(0, broker.Contains(want)) != 1 {
			t.Errorf("the log does not say: %s", want)
		}
	})
	t.Run("a listener without the plugin", func(t *testing.T) {
		t.Parallel()
		g := newGate(t, broker.Options{PerListenerSettings: true, Listeners: []string{tlsListener}})
		_, port, err := net.SplitHostPort(g.broker.Address(1))
		g.no(err)
		_, err = g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: per_listener_settings is true and this listener has no plugin line", "listener "+port+" "))
		g.no(err)
	})
}

// neverTicks checks what the log says of a broker that never ticks: a response waits for the next message.
func (g *gate) neverTicks(d *device.Device) {
	g.Helper()
	sensor := g.connect(d, mqtt5)
	g.no(sensor.Subscribe(g.limit(), sensor.ResponseTopic(), 1))
	for every := time.Tick(50 * time.Millisecond); ; <-every {
		g.accept(sensor, 1, d.Sign("22"))
		if len(g.broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: "))) > 0 {
			break
		}
	}
	if n := len(sensor.Inbox().On(sensor.ResponseTopic())); n == 0 {
		g.Error("no response came with later messages")
	}
	g.accept(sensor, 1, d.Sign("22"))
	ticks := g.broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: "))
	if len(ticks) != 1 || !strings.Contains(ticks[0], "Mosquitto before 2.0.15 does not with per_listener_settings true. Responses wait "+
		"for the next message, and no client is disconnected for bad signatures; upgrade, or set per_listener_settings false") {
		g.Errorf("the log says that the broker does not tick: %q", ticks)
	}
}

// ticksWithListenerSettings checks that a response comes by itself, and that the log has nothing to say about ticks once a
// broker that has none would be known for it.
func (g *gate) ticksWithListenerSettings(d *device.Device) {
	g.Helper()
	sensor := g.connect(d, mqtt5)
	g.no(sensor.Subscribe(g.limit(), sensor.ResponseTopic(), 1))
	begin := time.Now()
	g.accept(sensor, 1, d.Sign("22"))
	_, err := sensor.Inbox().WaitCount(g.limit(), sensor.ResponseTopic(), 1)
	g.no(err)
	for every := time.Tick(500 * time.Millisecond); time.Since(begin) < 6*time.Second; <-every {
		g.accept(sensor, 1, d.Sign("22"))
	}
	if lines := g.broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: ")); len(lines) > 0 {
		g.Errorf("the broker ticks, and the log says: %q", lines)
	}
}

// TestSignalHandlersWithoutTicks looks at the broker's signal handlers where it never ticks: they use their own stack once
// the first message has been decided on.
func TestSignalHandlersWithoutTicks(t *testing.T) {
	t.Parallel()
	onMessage := strings.ReplaceAll(probe, "MOSQ_EVT_TICK", "MOSQ_EVT_MESSAGE") // the second, as there the second tick
	g := newGateWith(t, broker.Options{
		Devices: []string{"sensor_001"}, PerListenerSettings: true, ListenerConf: "plugin {dir}/probe.so",
	}, map[string]string{"probe.so": string(compile(t, "probe_message", onMessage))})
	d := g.device("sensor_001")
	c := g.connect(d, mqtt5)
	g.accept(c, 1, d.Sign("1"))
	g.accept(c, 1, d.Sign("2"))
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("probe: done"))
	g.no(err)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2} {
		if g.broker.Log().Count(0, broker.Contains(fmt.Sprintf("probe: signal=%d handled=1 onstack=1", sig))) != 1 {
			t.Errorf("the broker's handler of %v is not installed with SA_ONSTACK:\n\t%s", sig,
				strings.Join(g.broker.Log().Find(0, broker.Contains("probe: ")), "\n\t"))
		}
	}
}

// named is a client whose certificate has this value as its common name, in the encoding that the value implies, and
// which has the secret of the device as it is told.
func (g *gate) named(value any, id string, secret []byte) *device.Device {
	g.Helper()
	caKey, err := g.broker.CA().KeyPEM()
	g.no(err)
	ca, err := tls.X509KeyPair(g.broker.CA().CertPEM(), caKey)
	g.no(err)
	issuer, err := x509.ParseCertificate(ca.Certificate[0])
	g.no(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.no(err)
	name := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: value}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{name}},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, issuer, key.Public(), ca.PrivateKey)
	g.no(err)
	d := *g.device("monitor")
	d.ID, d.Secret, d.Certificate = id, secret, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &d
}

// TestCommonNames has certificates whose common names mean something to MQTT, or are written so that other bytes of them
// spell a device's. The database, made by the Python gateway, has them all as devices.
func TestCommonNames(t *testing.T) {
	bmp := func(text string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagBMPString, Bytes: []byte(text)} }
	names := []string{"a/b", "+", "#", "sensor_001/data", "/", "$share", "sensor_001 ", "Sensor_001", "sensor_00\u0661"}
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}, PythonDatabase: true})
	g.watch()
	const secret = "known to every one of them"
	for _, name := range names {
		g.no(g.broker.SQL("INSERT INTO devices(device_id, shared_secret, created_at) VALUES(?, ?, ?)", name, secret, time.Now().Unix()))
	}
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: skipped rows that are no devices", fmt.Sprintf("rows=%d ", len(names)-1)))
	g.no(err) // all but Sensor_001, which is one
	one := g.device("sensor_001")
	for _, name := range names {
		d := g.named(name, name, []byte(secret))
		for _, p := range bothProtocols {
			c := g.open(d, p, "client", true)
			refuse := func(topic string, m device.Message, reason string) {
				g.Helper()
				c.refuse(topic, packet{qos: 1, id: 1, Message: m}, reason)
			}
			refuse(one.DataTopic(), one.Sign("22"), "topic_mismatch")
			refuse(one.DataTopic(), d.Sign("22", device.As("sensor_001")), "topic_mismatch")
			refuse(one.ResponseTopic(), device.Message{Bytes: []byte("hello")}, "forbidden_topic")
			if name != "Sensor_001" && !strings.ContainsAny(name, "/+#") { // with those, its topic is not gated
				refuse(d.DataTopic(), device.Message{Bytes: fmt.Appendf(nil,
					`{"device_id":%q,"timestamp":%d,"message_id":"%s","payload":22,"signature":"%064d"}`, name, time.Now().Unix(), uuid.New(), 0,
				)}, "malformed")
			}
		}
	}
	// To whoever issued this certificate it names 獥湳潲弰〱. The broker takes its bytes for a name.
	impostor := g.named(bmp("sensor_001"), "sensor_001", one.Secret)
	for _, p := range bothProtocols {
		m := one.Sign("22")
		g.refused = append(g.refused, delivery{m, one.DataTopic(), "under a name in another encoding"})
		mark := g.broker.Log().Mark()
		ack := g.open(impostor, p, "client", true).publish(one.DataTopic(), packet{qos: 1, id: 1, Message: m})
		if ack.Code != p.refusal(1) {
			g.Errorf("a name in another encoding: %v", ack)
			continue
		}
		line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
		g.no(err)
		if fields(line)["reason"] != "no_tls_identity" {
			g.Errorf("a name in another encoding; the log says: %s", line)
		}
	}
	g.accept(g.connect(one, mqtt5), 1, one.Sign("22"))
	g.nothingElse("witness")
}

// TestTooManyBadSignatures has a client disconnected that does not have the secret, and no other.
func TestTooManyBadSignatures(t *testing.T) {
	const limit = 5
	ids := []string{"sensor_001", "sensor_002"}
	g := newGate(t, broker.Options{
		Devices: append(ids, "neighbour"), Settings: map[string]any{"publish.max_bad_signatures": limit},
	})
	g.watch()
	for i, p := range bothProtocols {
		g.sub(p.String(), func(g *gate) {
			d := g.device(ids[i])
			honest, neighbour := g.connect(d, p), g.connect(g.device("neighbour"), p)
			thief := *d // with the stolen certificate alone
			thief.Secret = []byte("guessed")
			c := g.connect(&thief, p)
			for range limit {
				g.refuse(c, d.DataTopic(), 1, device.Message{Bytes: []byte("22")}, "malformed") // does not count
			}
			mark := g.broker.Log().Mark()
			for round := 1; ; round++ {
				minute := time.Now().Unix() / 60
				for range limit {
					m := thief.Sign("22")
					g.refused = append(g.refused, delivery{m, d.DataTopic(), "by a thief"})
					if ack := g.publish(c, d.DataTopic(), 1, m.Bytes); ack.Code != p.refusal(1) {
						g.Errorf("a bad signature: %v", ack)
					}
				}
				counted := time.Now()
				select {
				case <-c.Done():
				case <-time.After(time.Second):
					// The minute may have ended between two of them; the count then began anew.
					if round == 1 && minute != counted.Unix()/60 {
						continue
					}
					g.Fatalf("the client is still connected a second after %d bad signatures", limit)
				}
				break
			}
			line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: disconnected for "))
			g.no(err)
			if !strings.HasPrefix(fields(line)["client"], d.ID+"-") {
				g.Errorf("the log does not name the client: %s", line)
			}
			// The certificate alone is not enough to have the device itself disconnected.
			g.accept(honest, 1, d.Sign("22"))
			g.accept(neighbour, 1, neighbour.Sign("22"))
		})
	}
	g.nothingElse("neighbour")
	if n := g.broker.Log().Count(0, broker.Contains("bouncer: disconnected ")); n != len(bothProtocols) {
		g.Errorf("%d clients were disconnected, want %d", n, len(bothProtocols))
	}
}
