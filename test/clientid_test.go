package test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestForeignClientID: a client that connects with the client id of another identity ends that one's connection, which no plugin
// can prevent, but may do nothing in its place: it is refused and disconnected, and the session keeps its subscriptions.
func TestForeignClientID(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, Conf: "allow_anonymous true", HTTP: true,
		Listeners: []string{"certfile {cert}\nkeyfile {key}\n"},
	})
	g.Watch()
	one, two := g.Device("sensor_001"), g.Device("sensor_002")
	plain := g.Device("nobody").Anonymous().Via(g.Broker.Address(1))
	for _, p := range harness.BothProtocols {
		for _, intruder := range []struct {
			name string
			*device.Device
		}{{"a device", two}, {"a client that is no device", g.Device("partner")}, {"an anonymous client", plain}} {
			for what, does := range map[string]func(s *harness.Subscriber) device.Ack{
				"publishes": func(s *harness.Subscriber) device.Ack {
					return s.Publish(two.DataTopic(), harness.Packet{QoS: 1, ID: 1, Message: two.Sign("22")})
				},
				"publishes elsewhere": func(s *harness.Subscriber) device.Ack {
					return s.Publish("site/status", harness.Packet{QoS: 1, ID: 1, Message: device.Message{Bytes: []byte("22")}})
				},
				"subscribes":   func(s *harness.Subscriber) device.Ack { return device.Ack{Code: s.Subscribe(two.ResponseTopic())[0]} },
				"unsubscribes": func(s *harness.Subscriber) device.Ack { return device.Ack{Code: s.Unsubscribe(one.ResponseTopic())} },
			} {
				g.Sub(fmt.Sprintf("%v, %s %s", p, intruder.name, what), func(g *harness.Gateway) {
					takenOver(g, one, p, intruder.Device, does)
				})
			}
		}
	}
	if refused := g.Metric(`bouncer_publishes_total{verdict="foreign_client_id"}`); refused < 24 {
		g.Errorf("%v refusals are counted, want 24 or more", refused)
	}
	if n := g.Metric("bouncer_foreign_client_ids_total"); n < 24 {
		g.Errorf("%v connections are counted, want 24 or more", n)
	}
}

// takenOver has an intruder take over the victim's session and do something in it.
func takenOver(g *harness.Gateway, victim *device.Device, p harness.Protocol, intruder *device.Device, does func(*harness.Subscriber) device.Ack) {
	g.Helper()
	s := g.Subscriber(victim, p, victim.ID, false)
	s.Want(true, "", victim.ResponseTopic())
	mark := g.Broker.Log().Mark()
	in := g.Subscriber(intruder, p, victim.ID, false)
	// Mosquitto 2.1 tells of the connection, so that the intruder is disconnected before it has done anything.
	if !g.Broker.Version().AtLeast(2, 1, 0) {
		if ack := does(in); p == harness.MQTT5 && ack.Code != device.NotAuthorized {
			g.Errorf("the intruder was told %v", ack)
		}
	}
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("reason=foreign_client_id ", "client="+victim.ID))
	g.Must(err)
	_, err = g.Broker.WaitLog(g.Limit(), mark, broker.Contains("disconnected for using the client id of another identity", "client="+victim.ID))
	g.Must(err)
	for { // until the connection has gone
		if in.V5 != nil {
			if _, err = in.V5.Next(g.Limit()); err != nil {
				break
			}
		} else if _, err = in.V3.Next(g.Limit()); err != nil {
			break
		}
	}

	c := &harness.Client{Device: victim, Protocol: harness.MQTT5, Username: victim.ID}
	v5, err := victim.ConnectV5(g.Limit(), func(c *paho.Connect) {
		c.ClientID, c.CleanStart = victim.ID, false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: new(uint32(0))}
	})
	g.Must(err)
	c.Client = v5
	m := victim.Sign("22")
	g.Accept(c, 1, m)
	if _, err := v5.Inbox().WaitCount(g.Limit(), victim.ResponseTopic(), 1); err != nil {
		g.Errorf("the session has lost its subscription: %v", err)
	}
	g.Must(v5.Close())
}

// TestForeignClientIDIsSeenAtTheEnd: who only connects and leaves has thrown the other one out, and is named in the log.
func TestForeignClientIDIsSeenAtTheEnd(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	for _, p := range harness.BothProtocols {
		mark := g.Broker.Log().Mark()
		g.Open(g.Device("sensor_002"), p, "sensor_001", true).Cut()
		line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("reason=foreign_client_id ", "device=sensor_002", "client=sensor_001"))
		g.Must(err)
		if !strings.Contains(line, "use_username_as_clientid") {
			g.Errorf("the cure is not named: %s", line)
		}
	}
}

// TestOwnClientIDs: every client may use an id that no identity has, and another client's becomes its own once it was seen to
// have its user name for it.
func TestOwnClientIDs(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.Watch()
	for _, p := range harness.BothProtocols {
		for i, id := range []string{"sensor_001-1-abc", "sensor_001/data", "dashboard", "x", "SENSOR_002"} {
			c := g.Open(g.Device("sensor_001"), p, id, true)
			c.Have(harness.Packet{QoS: 1, ID: uint16(i + 1), Message: g.Device("sensor_001").Sign("22")})
			c.Cut()
			s := g.Subscriber(g.Device("dashboard"), p, id+"-2", true)
			if code := s.Subscribe("device/+/data")[0]; code > 1 {
				g.Errorf("a dashboard with the client id %s subscribes: 0x%02x", id, code)
			}
			s.Cut()
		}
	}
	own := g.Subscriber(g.Device("dashboard"), harness.MQTT5, "dashboard", false)
	own.Subscribe("device/+/data")
	own.Cut()
	mark := g.Broker.Log().Mark()
	partner := g.Subscriber(g.Device("partner"), harness.MQTT5, "dashboard", false)
	if g.Broker.Version().AtLeast(2, 1, 0) {
		// It is disconnected as soon as it has connected.
	} else if code := partner.Unsubscribe("device/+/data"); code != device.NotAuthorized {
		g.Errorf("another one unsubscribes it: 0x%02x", code)
	}
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("reason=foreign_client_id ", "device=partner", "client=dashboard"))
	g.Must(err)
	// A device that takes over the session of a client without an identity leaves it as it is.
	nameless := g.Subscriber(g.Device("viewer"), harness.MQTT5, "screen", false)
	nameless.Subscribe("device/+/data")
	nameless.Cut()
	in := g.Subscriber(g.Device("sensor_002"), harness.MQTT5, "screen", false)
	if code := in.Unsubscribe("device/+/data"); code != device.NotAuthorized {
		g.Errorf("a device unsubscribes a dashboard: 0x%02x", code)
	}
	in.Cut()
	d := g.Device("sensor_001")
	m := d.Sign(`"for the screen"`)
	g.Accept(g.Connect(d, harness.MQTT5), 1, m)
	back, err := g.Device("viewer").ConnectV5(g.Limit(), func(c *paho.Connect) { c.ClientID, c.CleanStart = "screen", false })
	g.Must(err)
	g.Cleanup(func() { _ = back.Close() })
	g.Accept(g.Connect(d, harness.MQTT5), 1, d.Sign("22"))
	_, err = back.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.HasSuffix([]byte(r.Topic), []byte("/data")) })
	g.Must(err)
}

// usernameAsClientID is the setting that makes taking over another identity's session impossible.
const usernameAsClientID = "use_username_as_clientid true"

// TestUsernameAsClientID: with it on every listener, no client can have another's id; a listener without it lets in any.
func TestUsernameAsClientID(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, ListenerConf: usernameAsClientID, Listeners: []string{harness.TLSListener},
	})
	one := g.Subscriber(g.Device("sensor_001"), harness.MQTT5, "sensor_001", false)
	one.Want(true, "", one.Device.ResponseTopic())
	two := g.Subscriber(g.Device("sensor_002"), harness.MQTT5, "sensor_001", true) // the broker renames it
	two.Want(true, "", two.Device.ResponseTopic())
	one.Want(true, "", one.Device.CommandTopic()) // still connected, and the session is its own
	mark := g.Broker.Log().Mark()
	other := g.Open(g.Device("sensor_002").Via(g.Broker.Address(1)), harness.MQTT5, "sensor_001", false)
	if g.Broker.Version().AtLeast(2, 1, 0) {
		// It is disconnected as soon as it has connected.
	} else if ack := other.Publish(other.Device.DataTopic(), harness.Packet{QoS: 1, ID: 1, Message: other.Device.Sign("22")}); ack.Code != device.NotAuthorized {
		g.Errorf("by a listener without it: %v", ack)
	}
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("reason=foreign_client_id "))
	g.Must(err)
}
