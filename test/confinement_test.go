package test

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
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
