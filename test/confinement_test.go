package test

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"mosquitto-bouncer/test/broker"
	"mosquitto-bouncer/test/device"
)

// expectConfined checks that a client may neither subscribe nor publish, and that its last will reaches nobody, or that
// it may.
func (g *gate) expectConfined(name string, confined bool) {
	g.Helper()
	g.expectConfinedBut(name, confined, 0)
}

// expectConfinedBut is expectConfined of a client of which so many last wills reach others nevertheless.
func (g *gate) expectConfinedBut(name string, confined bool, wills int) {
	g.Helper()
	for _, p := range bothProtocols {
		witness := g.connect(g.device("dashboard"), mqtt5)
		g.no(witness.Subscribe(g.limit(), "site/#", 1))
		will := g.leaveWill(g.device(name), p, name+"-will", 60, lastWill{topic: "site/will", message: []byte("will of " + name)})
		c := g.connect(g.device(name), p)
		for _, filter := range []string{"#", "device/+/data", "site/status"} {
			if got := g.subscribe(c, filter) > 2; got != confined {
				g.Errorf("%s subscribes to %s over %v, refused: %v", name, filter, p, got)
			}
		}
		g.publish(c, "site/status", 1, []byte("status of "+name))
		mark := g.broker.Log().Mark()
		g.no(will.Close()) // cut off
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Matches("Client "+name+"-will .*(closed its connection|disconnected)"))
		g.no(err)
		g.publish(witness, "site/end", 1, []byte("end"))
		_, err = witness.Inbox().Wait(g.limit(), func(r device.Received) bool { return r.Topic == "site/end" })
		g.no(err)
		if !confined {
			_, err = witness.Inbox().Wait(g.limit(), func(r device.Received) bool { return r.Topic == "site/will" && !r.Retain })
			g.no(err)
		}
		heard := 0
		for _, r := range witness.Inbox().All() {
			if strings.HasSuffix(string(r.Payload), " of "+name) && !r.Retain {
				heard++
			}
		}
		if want := map[bool]int{true: wills, false: 2}[confined]; heard != want {
			g.Errorf("%s over %v: %d messages of its own reach others, want %d", name, p, heard, want)
		}
		g.no(witness.Close())
		g.no(c.Close())
	}
}

// TestRemovedStaysConfined removes devices while the broker runs and while it does not, with bouncerctl and with plain
// SQL, restarts it, and releases one.
func TestRemovedStaysConfined(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002", "sensor_003"}, Persistence: true})
	program := buildCtl(t)
	mark := g.broker.Log().Mark()
	g.ctl(program, "device", "remove", "sensor_001")
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.no(err)
	g.expectConfined("sensor_001", true)
	g.no(g.broker.Stop())
	g.no(g.broker.SQL("DELETE FROM devices WHERE device_id = 'sensor_002'"))
	g.no(g.broker.Start())
	for _, id := range []string{"sensor_001", "sensor_002", "sensor_003"} {
		g.expectConfined(id, true)
	}
	if out := g.ctl(program, "device", "release", "sensor_001"); out != "Released: 1 device id.\n" {
		t.Errorf("%q", out)
	}
	g.expectConfined("sensor_001", false)
	if out := g.ctl(program, "device", "remove", "sensor_003", "--release"); !strings.Contains(out, "Released: 1 device id.") {
		t.Errorf("%q", out)
	}
	g.no(g.broker.Restart())
	g.expectConfined("sensor_001", false)
	g.expectConfined("sensor_002", true)
	g.expectConfined("sensor_003", false)
}

// TestUnknownCertificatesAreDenied has certificates of the devices' CA that are no device's, with every listener taking
// names from certificates, and with one that does not.
func TestUnknownCertificatesAreDenied(t *testing.T) {
	settings := map[string]any{"acl.unknown_certificates": "deny", "acl.certificates": []string{"dashboard", "monitor"}}
	for name, listeners := range map[string][]string{"certificates alone": nil, "others too": {""}} {
		t.Run(name, func(t *testing.T) {
			options := broker.Options{Devices: []string{"sensor_001"}, Settings: settings, Listeners: listeners}
			if listeners != nil {
				options.Conf = "allow_anonymous true"
			}
			g := newGate(t, options)
			g.watch()
			wills := 0
			if listeners != nil && !g.broker.Version().AtLeast(2, 0, 12) {
				wills = 1 // 2.0.11 shows no certificate any more when it sends a will
			}
			g.expectConfinedBut("stranger", true, wills)
			g.expectConfined("monitor", false)
			c := g.connect(g.device("sensor_001"), mqtt5)
			g.accept(c, 1, c.Sign("22"))
			if listeners != nil {
				plain := g.plainAt(1, "anyone")
				g.no(plain.Subscribe(g.limit(), "site/#", 1))
				g.publish(plain, "site/plain", 1, []byte("hello"))
				_, err := plain.Inbox().WaitCount(g.limit(), "site/plain", 1)
				g.no(err)
			}
			mark := g.broker.Log().Mark()
			g.no(g.broker.SetSettings(map[string]any{"acl.certificates": []string{"dashboard", "monitor", "stranger"}}))
			g.no(g.broker.Signal(syscall.SIGHUP))
			_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: bouncer.toml was reloaded"))
			g.no(err)
			g.expectConfined("stranger", false)
		})
	}
}

// TestUnknownCertificateWithOlderSubscriptions has one that subscribed while it was allowed to, and was away since.
func TestUnknownCertificateWithOlderSubscriptions(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, Persistence: true})
	g.leaveSubscribed("stranger", "#")
	g.leaveSubscribed("dashboard", "#")
	g.no(g.broker.SetSettings(map[string]any{"acl.unknown_certificates": "deny", "acl.certificates": []string{"dashboard"}}))
	g.no(g.broker.Restart())
	c := g.connect(g.device("sensor_001"), mqtt5)
	m := c.Sign("22")
	if ack := g.publish(c, c.DataTopic(), 1, m.Bytes); !ack.Accepted() {
		t.Fatal(ack)
	}
	dashboard, stranger := g.resume("dashboard"), g.resume("stranger")
	_, err := dashboard.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, m.Bytes) })
	g.no(err)
	later := c.Sign("23")
	if ack := g.publish(c, c.DataTopic(), 1, later.Bytes); !ack.Accepted() {
		t.Fatal(ack)
	}
	_, err = dashboard.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, later.Bytes) })
	g.no(err)
	// What the broker sends to one client comes in order: a refused subscription is the end of what came before.
	if err := stranger.Subscribe(g.limit(), "site/#", 1); err == nil {
		t.Error("a stranger subscribes")
	}
	if got := stranger.Inbox().All(); len(got) > 0 {
		t.Errorf("a stranger got by an older subscription: %v", got)
	}
}

// plainAt connects without TLS to a further listener, by MQTT 3.1.1.
func (g *gate) plainAt(listener int, username string) *client {
	g.Helper()
	d := g.device(username)
	c, err := d.ConnectV3(g.limit(), func(o *mqtt.ClientOptions) {
		o.Servers = nil
		o.AddBroker("tcp://" + g.broker.Address(listener)).SetUsername(username)
	})
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	return &client{Client: c, Device: d, protocol: mqtt311, username: username}
}
