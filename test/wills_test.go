package test

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
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
