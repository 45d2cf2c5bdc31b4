package test

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// expectConfined checks that a client may neither subscribe nor publish, and that its last will is not delivered, or that
// it may.
func expectConfined(g *harness.Gateway, name string, confined bool) {
	g.Helper()
	expectConfinedBut(g, name, confined, 0)
}

// expectConfinedBut is expectConfined of a client of which so many last wills reach others nevertheless.
func expectConfinedBut(g *harness.Gateway, name string, confined bool, wills int) {
	g.Helper()
	for _, p := range harness.BothProtocols {
		witness := g.Connect(g.Device("dashboard"), harness.MQTT5)
		g.Must(witness.Subscribe(g.Limit(), "site/#", 1))
		will := g.LeaveWill(g.Device(name), p, name+"-will", 60, harness.LastWill{Topic: "site/will", Message: []byte("will of " + name)})
		c := g.Connect(g.Device(name), p)
		for _, filter := range []string{"#", "device/+/data", "site/status"} {
			if got := g.Subscribe(c, filter) > 2; got != confined {
				g.Errorf("%s subscribes to %s over %v, refused: %v", name, filter, p, got)
			}
		}
		g.Publish(c, "site/status", 1, []byte("status of "+name))
		mark := g.Broker.Log().Mark()
		g.Must(will.Close()) // cut off
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Matches("Client "+name+"-will .*(closed its connection|disconnected)"))
		g.Must(err)
		g.Publish(witness, "site/end", 1, []byte("end"))
		_, err = witness.Inbox().Wait(g.Limit(), func(r device.Received) bool { return r.Topic == "site/end" })
		g.Must(err)
		if !confined {
			_, err = witness.Inbox().Wait(g.Limit(), func(r device.Received) bool { return r.Topic == "site/will" && !r.Retain })
			g.Must(err)
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
		g.Must(witness.Close())
		g.Must(c.Close())
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
			g := harness.New(t, options)
			g.Watch()
			wills := 0
			if listeners != nil && !g.Broker.Version().AtLeast(2, 0, 12) {
				wills = 1 // 2.0.11 shows no certificate any more when it sends a will
			}
			expectConfinedBut(g, "stranger", true, wills)
			expectConfined(g, "monitor", false)
			c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
			g.Accept(c, 1, c.Sign("22"))
			if listeners != nil {
				plain := plainAt(g, 1, "anyone")
				g.Must(plain.Subscribe(g.Limit(), "site/#", 1))
				g.Publish(plain, "site/plain", 1, []byte("hello"))
				_, err := plain.Inbox().WaitCount(g.Limit(), "site/plain", 1)
				g.Must(err)
			}
			mark := g.Broker.Log().Mark()
			g.Must(g.Broker.SetSettings(map[string]any{"acl.certificates": []string{"dashboard", "monitor", "stranger"}}))
			g.Must(g.Broker.Signal(syscall.SIGHUP))
			_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: bouncer.toml was reloaded"))
			g.Must(err)
			expectConfined(g, "stranger", false)
		})
	}
}

// TestUnknownCertificateWithOlderSubscriptions has one that subscribed while it was allowed to, and was away since.
func TestUnknownCertificateWithOlderSubscriptions(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Persistence: true})
	g.LeaveSubscribed("stranger", "#")
	g.LeaveSubscribed("dashboard", "#")
	g.Must(g.Broker.SetSettings(map[string]any{"acl.unknown_certificates": "deny", "acl.certificates": []string{"dashboard"}}))
	g.Must(g.Broker.Restart())
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	m := c.Sign("22")
	if ack := g.Publish(c, c.DataTopic(), 1, m.Bytes); !ack.Accepted() {
		t.Fatal(ack)
	}
	dashboard, stranger := g.Resume("dashboard"), g.Resume("stranger")
	_, err := dashboard.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, m.Bytes) })
	g.Must(err)
	later := c.Sign("23")
	if ack := g.Publish(c, c.DataTopic(), 1, later.Bytes); !ack.Accepted() {
		t.Fatal(ack)
	}
	_, err = dashboard.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, later.Bytes) })
	g.Must(err)
	// What the broker sends to one client comes in order: a refused subscription is the end of what came before.
	if err := stranger.Subscribe(g.Limit(), "site/#", 1); err == nil {
		t.Error("a stranger subscribes")
	}
	if got := stranger.Inbox().All(); len(got) > 0 {
		t.Errorf("a stranger got by an older subscription: %v", got)
	}
}

// plainAt connects without TLS to a further listener, by MQTT 3.1.1.
func plainAt(g *harness.Gateway, listener int, username string) *harness.Client {
	g.Helper()
	d := g.Device(username)
	c, err := d.ConnectV3(g.Limit(), func(o *mqtt.ClientOptions) {
		o.Servers = nil
		o.AddBroker("tcp://" + g.Broker.Address(listener)).SetUsername(username)
	})
	g.Must(err)
	g.Cleanup(func() { _ = c.Close() })
	return &harness.Client{Client: c, Device: d, Protocol: harness.MQTT311, Username: username}
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
			options.Files = map[string]string{"acl": lenient}
			g := harness.New(t, options)
			g.Watch()
			g.Disable("revoked", true)
			hello := device.Message{Bytes: []byte("hello")}
			for _, p := range harness.BothProtocols {
				one, two := g.Connect(g.Device("sensor_001"), p), g.Connect(g.Device("sensor_002"), p)
				revoked, dashboard := g.Connect(g.Device("revoked"), p), g.Connect(g.Device("dashboard"), p)
				for _, filter := range []string{
					"#", "+/+/+", "device/#", "device/+/data", "device/+/response", "device/sensor_001/#", "device/sensor_001/+",
					"+/sensor_001/response", "device/sensor_001/data", "device/sensor_001/response/#", "device/sensor_002/data",
					"device/sensor_002/response", "device/sensor_002/command", "Device/sensor_001/response", "/device/sensor_001/response",
					"$share/group/device/sensor_001/response", "$share/group/#", "$SYS/#", "site/status",
				} {
					g.RefuseSubscription(one, filter)
				}
				g.RefuseSubscription(revoked, "device/+/data")
				g.RefuseSubscription(revoked, "device/sensor_001/response")
				revoked.Disabled = true
				for _, topic := range []string{revoked.ResponseTopic(), revoked.CommandTopic()} {
					g.ExpectRefusal(topic, device.Message{}, "subscription")
					mark := g.Broker.Log().Mark()
					if got := g.Subscribe(revoked, topic); got < 0x80 {
						g.Errorf("a disabled device subscribes to %s: 0x%02x", topic, got)
					}
					_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device=revoked", "topic="+topic, "reason=disabled"))
					g.Must(err)
				}
				for _, c := range []*harness.Client{one, two} {
					for _, topic := range []string{"response", "command"} {
						if got := g.Subscribe(c, "device/"+c.Username+"/"+topic); got > 2 {
							g.Errorf("%s subscribes to its own %s: 0x%02x", c.Username, topic, got)
						}
					}
				}
				for i, topic := range []string{
					"site/status", "device/sensor_001", "device/sensor_001/", "device/sensor_001/data/", "device/sensor_001/data/more",
					"Device/sensor_001/data", "/device/sensor_001/data", "device/sensor_001/response", "device/sensor_001/command",
					"device/sensor_002/response", "device/sensor_002/command",
				} {
					g.Refuse(one, topic, byte(i%3), hello, "forbidden_topic")
				}
				g.Refuse(revoked, "site/status", 1, hello, "forbidden_topic")
				for qos := byte(0); qos <= 2; qos++ {
					for _, topic := range []string{"device/sensor_001/response", "device/sensor_001/command", "device/nobody/response", "device//command"} {
						g.Refuse(dashboard, topic, qos, hello, "forbidden_topic")
					}
				}

				// Who is no device is left alone, and a device has what is its own.
				for _, filter := range []string{"#", "device/+/data", "device/sensor_001/response", "$share/group/site/#"} {
					if got := g.Subscribe(dashboard, filter); got > 2 {
						g.Errorf("a dashboard subscribes to %q: 0x%02x", filter, got)
					}
				}
				status := fmt.Appendf(nil, "status over %v", p)
				g.Publish(dashboard, "site/status", 1, status)
				g.Delivered("site/status", status)
				g.Accept(one, 1, one.Sign("22"))
				_, err := one.Inbox().WaitCount(g.Limit(), one.ResponseTopic(), 1)
				g.Must(err)
				g.Accept(two, 1, two.Sign("22"))
				_, err = two.Inbox().WaitCount(g.Limit(), two.ResponseTopic(), 1)
				g.Must(err)
				for _, c := range []*harness.Client{one, two, revoked} {
					for _, r := range c.Inbox().All() {
						if r.Topic != c.ResponseTopic() {
							g.Errorf("%s got on %q: %q", c.Username, r.Topic, r.Payload)
						}
					}
				}
			}
			for _, r := range g.Monitor.Inbox().All() {
				if bytes.Equal(r.Payload, hello.Bytes) {
					g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
				}
			}
			g.NothingElse("sensor_001")
		})
	}
}
