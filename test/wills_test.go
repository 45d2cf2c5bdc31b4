package test

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

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
	protocols []harness.Protocol
	situation situation
	keepAlive uint16 // seconds; 0: none
	delay     uint32 // of the wills
	end       func(g *harness.Gateway, all []*harness.Testator)
	stops     bool // the broker, too
}

// mqtt5Only is for endings that MQTT 3.1.1 does not have.
var mqtt5Only = []harness.Protocol{harness.MQTT5}

func each(end func(g *harness.Gateway, t *harness.Testator)) func(*harness.Gateway, []*harness.Testator) {
	return func(g *harness.Gateway, all []*harness.Testator) {
		g.Helper()
		for _, t := range all {
			end(g, t)
		}
	}
}

func terminate(g *harness.Gateway, _ []*harness.Testator) { g.Must(g.Broker.Stop()) }

var endings = []ending{
	{name: "connection cut", protocols: harness.BothProtocols, situation: gone, end: each(harness.Cut)},
	{name: "protocol error", protocols: harness.BothProtocols, situation: gone, end: each(func(g *harness.Gateway, t *harness.Testator) {
		_, err := t.Write([]byte{0, 0})
		g.Must(err)
	})},
	{name: "DISCONNECT with will", protocols: mqtt5Only, situation: gone, end: each(func(g *harness.Gateway, t *harness.Testator) {
		_, err := t.Write([]byte{packets5.DISCONNECT << 4, 1, packets5.DisconnectDisconnectWithWillMessage})
		g.Must(err)
	})},
	{name: "keep-alive time-out", protocols: harness.BothProtocols, situation: gone, keepAlive: 1, end: each(func(g *harness.Gateway, t *harness.Testator) {})},
	{name: "take-over, clean start", protocols: harness.BothProtocols, situation: connected, end: each(func(g *harness.Gateway, t *harness.Testator) {
		t.TakeOver(g, t.Device, true)
	})},
	{name: "take-over", protocols: harness.BothProtocols, situation: connected, end: each(func(g *harness.Gateway, t *harness.Testator) {
		t.TakeOver(g, t.Device, false)
	})},
	{name: "take-over by another device", protocols: harness.BothProtocols, situation: connected, end: each(func(g *harness.Gateway, t *harness.Testator) {
		t.TakeOver(g, g.Device("witness"), true)
	})},
	{name: "delay", protocols: mqtt5Only, situation: forgotten, delay: 1, end: each(harness.Cut)},
	{name: "SIGTERM", protocols: harness.BothProtocols, situation: connected, end: terminate, stops: true},
	{name: "SIGTERM before delayed wills' connections end", protocols: mqtt5Only, situation: connected, delay: 3600, end: terminate, stops: true},
	{name: "SIGTERM during the delay", protocols: mqtt5Only, situation: forgotten, delay: 3600, stops: true,
		end: func(g *harness.Gateway, all []*harness.Testator) {
			for _, t := range all {
				mark := g.Broker.Log().Mark()
				harness.Cut(g, t)
				_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("Client "+cmp.Or(t.ClientID, t.Device.ID)+" "))
				g.Must(err)
			}
			terminate(g, all)
		}},
}

// A bequest is a last will on a gated topic, and the device that leaves it, after which it is named.
type bequest struct {
	device string
	topic  string // empty: the device's own
	// message makes the will of the device's client with this id.
	message func(g *harness.Gateway, d *device.Device, clientID string) device.Message
	// reason is why it is refused when nothing tells it from a publish.
	reason string
	// passes: a publish of it would not be refused.
	passes bool
}

var bequests = []bequest{
	{device: "unsigned", reason: "malformed", message: func(*harness.Gateway, *device.Device, string) device.Message {
		return device.Message{Bytes: []byte(`{"status":"offline"}`)}
	}},
	{device: "empty", reason: "malformed", message: func(*harness.Gateway, *device.Device, string) device.Message { return device.Message{} }},
	{device: "forged", reason: "bad_signature", message: func(_ *harness.Gateway, d *device.Device, _ string) device.Message {
		return d.Sign("22").Tampered(":22,", ":99,")
	}},
	{device: "stale", reason: "stale", message: func(_ *harness.Gateway, d *device.Device, _ string) device.Message {
		return d.Sign("22", device.SignedAt(time.Now().Add(-10*time.Minute)))
	}},
	{device: "captured", reason: "replay", message: func(g *harness.Gateway, d *device.Device, _ string) device.Message {
		m := d.Sign("22")
		g.Accept(g.Connect(d, harness.MQTT5), 1, m)
		return m
	}},
	{device: "repeated", reason: "replay", message: func(g *harness.Gateway, d *device.Device, clientID string) device.Message {
		m := d.Sign("22")
		c, err := d.ConnectV5(g.Limit(), func(c *paho.Connect) { c.ClientID = clientID })
		g.Must(err)
		g.Accept(&harness.Client{Client: c, Device: d, Protocol: harness.MQTT5, Username: d.ID}, 1, m)
		g.Must(c.Close())
		return m
	}},
	{device: "fresh", reason: "forbidden_topic", passes: true, message: func(_ *harness.Gateway, d *device.Device, _ string) device.Message {
		return d.Sign("22")
	}},
	{device: "meddler", topic: "device/witness/data", reason: "topic_mismatch", message: func(g *harness.Gateway, _ *device.Device, _ string) device.Message {
		return g.Device("witness").Sign("22")
	}},
	{device: "stranger", reason: "unknown_device", message: func(_ *harness.Gateway, d *device.Device, _ string) device.Message {
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
				g := harness.New(t, broker.Options{Devices: registered(), Persistence: true})
				wills(g, e, p, "-testator")
			})
		}
	}
}

// wills leaves the bequests under client ids that are the devices' with the given end, "" where the broker makes the user
// name the client id.
func wills(g *harness.Gateway, e ending, p harness.Protocol, idEnd string) {
	g.LeaveSubscribed("absent", "device/+/data")
	g.Watch()
	var all []*harness.Testator
	for _, b := range bequests {
		d, clientID := g.Device(b.device), b.device+idEnd
		m := b.message(g, d, clientID)
		if b.topic == "" {
			b.topic = d.DataTopic()
		}
		g.ExpectRefusal(b.topic, m, "the will "+b.device)
		all = append(all, g.LeaveWill(d, p, clientID, e.keepAlive, harness.LastWill{Topic: b.topic, Message: m.Bytes, Delay: e.delay}))
	}
	mark := g.Broker.Log().Mark()
	e.end(g, all)
	for _, b := range bequests {
		line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device="+b.device+" "))
		g.Must(err)
		want := [...]string{gone: "forbidden_topic", forgotten: "no_tls_identity", connected: b.reason}[e.situation]
		if e.situation == forgotten && g.Broker.Version().AtLeast(2, 1, 0) && harness.Fields(line)["reason"] == "forbidden_topic" {
			want = "forbidden_topic" // the end of the connection and the stop came in one round of the loop, without a tick
		}
		if got := harness.Fields(line); got["reason"] != want || want == "forbidden_topic" && got["detail"] != "a last will on a gated topic is not delivered" {
			g.Errorf("the will %q, want the reason %s; the log says: %s", b.device, want, line)
		}
	}

	if e.stops {
		select {
		case <-g.Monitor.Done():
		case <-g.Limit().Done():
			g.Fatal("the monitor's connection outlives the broker")
		}
		g.NoMore("the monitor at the stop", g.UnexpectedPublishes())
		g.Must(g.Broker.Start())
	} else {
		d := g.Device("witness")
		g.Accept(g.Connect(d, harness.MQTT5), 1, d.Sign(`"all wills have been sent"`))
		g.NoMore("the monitor", g.UnexpectedPublishes())
	}
	g.Monitor = g.Resume("absent")
	late := g.Connect(g.Device("late"), harness.MQTT5)
	g.Must(late.Subscribe(g.Limit(), "device/+/data", 1))
	d := g.Device("witness")
	last := d.Sign(`"nothing else"`)
	g.Accept(g.Connect(d, harness.MQTT5), 1, last)
	g.NoMore("the subscriber that was away", g.UnexpectedPublishes())

	_, err := late.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, last.Bytes) })
	g.Must(err)
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

	g.Must(g.Broker.Stop())
	g.NoMore("the backend", g.UnexpectedRequests())
	if refusals := g.Broker.Log().Find(0, broker.Contains("bouncer: refused ")); len(refusals) != len(bequests) {
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
				g := harness.New(t, broker.Options{WithoutPlugin: true})
				g.Watch()
				d := g.Device("fresh")
				w := harness.LastWill{Topic: d.DataTopic(), Message: d.Sign("22").Bytes, Delay: e.delay}
				e.end(g, []*harness.Testator{g.LeaveWill(d, p, "testator", e.keepAlive, w)})
				g.Delivered(w.Topic, w.Message)
			})
		}
	}
}

// TestWillsElsewhere has last wills on topics that are not gated. Who is no device may leave one, as without the plugin; a
// device may not, and no client may on the gateway's own topics.
func TestWillsElsewhere(t *testing.T) {
	const sink = "$bouncer/redelivered"
	for _, e := range endings {
		if e.name != "connection cut" && e.name != "take-over" && e.name != "SIGTERM" {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
			g.Watch()
			g.Must(g.Monitor.Subscribe(g.Limit(), "$bouncer/#", 1))
			wills := []struct{ client, topic, reason string }{
				{"sensor_001", "site/status", "forbidden_topic"},
				{"sensor_001", "device/sensor_001/response", "forbidden_topic"},
				{"dashboard", "device/sensor_001/response", "forbidden_topic"},
				{"dashboard", "device/sensor_001/command", "forbidden_topic"},
				{"dashboard", sink, ""}, // no line of its own
				{"sensor_001", sink, ""},
				{"dashboard", "site/status", "accepted"},
			}
			last := func(p harness.Protocol) string { return fmt.Sprintf("client-%d over %v", len(wills)-1, p) }
			for _, p := range harness.BothProtocols {
				var all []*harness.Testator
				for i, w := range wills {
					id := fmt.Sprintf("client-%d over %v", i, p)
					all = append(all, g.LeaveWill(g.Device(w.client), p, id, 0, harness.LastWill{Topic: w.topic, Message: []byte(id)}))
				}
				mark := g.Broker.Log().Mark()
				e.end(g, all)
				for _, w := range wills {
					if w.reason != "forbidden_topic" {
						continue
					}
					line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device="+w.client+" topic="+w.topic+" "))
					g.Must(err)
					if harness.Fields(line)["reason"] != w.reason {
						g.Errorf("the will of %s on %s, want the reason %s; the log says: %s", w.client, w.topic, w.reason, line)
					}
				}
				g.Delivered("site/status", []byte(last(p)))
				if e.stops {
					break
				}
			}
			for _, r := range g.Monitor.Inbox().All() {
				if r.Topic != "site/status" || string(r.Payload) != last(harness.MQTT5) && string(r.Payload) != last(harness.MQTT311) {
					g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
				}
			}
			if n := g.Backend.Count(); n > 0 {
				g.Errorf("the backend got %d requests", n)
			}
		})
	}
}
