package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestForeignClientID: whoever connects with the client id of another identity ends that one's connection, which no plugin
// can prevent, but may do nothing in its place: it is refused and disconnected, and the session keeps its subscriptions.
func TestForeignClientID(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, Conf: "allow_anonymous true", HTTP: true,
		Listeners: []string{"certfile {cert}\nkeyfile {key}\n"},
	})
	g.watch()
	one, two := g.device("sensor_001"), g.device("sensor_002")
	plain := g.device("nobody").Anonymous().Via(g.broker.Address(1))
	for _, p := range bothProtocols {
		for _, intruder := range []struct {
			name string
			*device.Device
		}{{"a device", two}, {"a client that is no device", g.device("partner")}, {"an anonymous client", plain}} {
			for what, does := range map[string]func(s *subscriber) device.Ack{
				"publishes": func(s *subscriber) device.Ack {
					return s.publish(two.DataTopic(), packet{qos: 1, id: 1, Message: two.Sign("22")})
				},
				"publishes elsewhere": func(s *subscriber) device.Ack {
					return s.publish("site/status", packet{qos: 1, id: 1, Message: device.Message{Bytes: []byte("22")}})
				},
				"subscribes":   func(s *subscriber) device.Ack { return device.Ack{Code: s.subscribe(two.ResponseTopic())[0]} },
				"unsubscribes": func(s *subscriber) device.Ack { return device.Ack{Code: s.unsubscribe(one.ResponseTopic())} },
			} {
				g.sub(fmt.Sprintf("%v, %s %s", p, intruder.name, what), func(g *gate) {
					g.takenOver(one, p, intruder.Device, does)
				})
			}
		}
	}
	if refused := g.metric(`bouncer_publishes_total{verdict="foreign_client_id"}`); refused < 24 {
		g.Errorf("%v refusals are counted, want 24 or more", refused)
	}
	if n := g.metric("bouncer_foreign_client_ids_total"); n < 24 {
		g.Errorf("%v connections are counted, want 24 or more", n)
	}
}

// metric reads one figure of the plugin's.
func (g *gate) metric(name string) (value float64) {
	g.Helper()
	request, err := http.NewRequestWithContext(g.limit(), http.MethodGet, "http://"+g.broker.HTTPAddr()+"/metrics", nil)
	g.no(err)
	request.Header.Set("Authorization", "Bearer "+broker.HTTPToken)
	answer, err := http.DefaultClient.Do(request)
	g.no(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	g.no(err)
	for line := range strings.Lines(string(text)) {
		if number, found := strings.CutPrefix(line, name+" "); found {
			value, err = strconv.ParseFloat(strings.TrimSpace(number), 64)
			g.no(err)
			return value
		}
	}
	g.Fatalf("no metric %s", name)
	return 0
}

// takenOver has an intruder take over the victim's session and do something in it.
func (g *gate) takenOver(victim *device.Device, p protocol, intruder *device.Device, does func(*subscriber) device.Ack) {
	g.Helper()
	s := g.subscriber(victim, p, victim.ID, false)
	s.want(true, "", victim.ResponseTopic())
	mark := g.broker.Log().Mark()
	in := g.subscriber(intruder, p, victim.ID, false)
	// Mosquitto 2.1 tells of the connection, so that the intruder is disconnected before it has done anything.
	if !g.broker.Version().AtLeast(2, 1, 0) {
		if ack := does(in); p == mqtt5 && ack.Code != device.NotAuthorized {
			g.Errorf("the intruder was told %v", ack)
		}
	}
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("reason=foreign_client_id ", "client="+victim.ID))
	g.no(err)
	_, err = g.broker.WaitLog(g.limit(), mark, broker.Contains("disconnected for bearing the client id of another identity", "client="+victim.ID))
	g.no(err)
	for { // until the connection has gone
		if in.v5 != nil {
			if _, err = in.v5.Next(g.limit()); err != nil {
				break
			}
		} else if _, err = in.v3.Next(g.limit()); err != nil {
			break
		}
	}

	c := &client{Device: victim, protocol: mqtt5, username: victim.ID}
	v5, err := victim.ConnectV5(g.limit(), func(c *paho.Connect) {
		c.ClientID, c.CleanStart = victim.ID, false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: ptr[uint32](0)}
	})
	g.no(err)
	c.Client = v5
	m := victim.Sign("22")
	g.accept(c, 1, m)
	if _, err := v5.Inbox().WaitCount(g.limit(), victim.ResponseTopic(), 1); err != nil {
		g.Errorf("the session has lost its subscription: %v", err)
	}
	g.no(v5.Close())
}

// TestForeignClientIDIsSeenAtTheEnd: who only connects and leaves has thrown the other one out, and is named in the log.
func TestForeignClientIDIsSeenAtTheEnd(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	for _, p := range bothProtocols {
		mark := g.broker.Log().Mark()
		g.open(g.device("sensor_002"), p, "sensor_001", true).cut()
		line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("reason=foreign_client_id ", "device=sensor_002", "client=sensor_001"))
		g.no(err)
		if !strings.Contains(line, "use_username_as_clientid") {
			g.Errorf("the cure is not named: %s", line)
		}
	}
}

// TestOwnClientIDs: an id that is nobody's may be used by everyone, and another client's becomes its own once it was seen to
// have its user name for it.
func TestOwnClientIDs(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	for _, p := range bothProtocols {
		for i, id := range []string{"sensor_001-1-abc", "sensor_001/data", "dashboard", "x", "SENSOR_002"} {
			c := g.open(g.device("sensor_001"), p, id, true)
			c.have(packet{qos: 1, id: uint16(i + 1), Message: g.device("sensor_001").Sign("22")})
			c.cut()
			s := g.subscriber(g.device("dashboard"), p, id+"-2", true)
			if code := s.subscribe("device/+/data")[0]; code > 1 {
				g.Errorf("a dashboard with the client id %s subscribes: 0x%02x", id, code)
			}
			s.cut()
		}
	}
	own := g.subscriber(g.device("dashboard"), mqtt5, "dashboard", false)
	own.subscribe("device/+/data")
	own.cut()
	partner := g.subscriber(g.device("partner"), mqtt5, "dashboard", false)
	mark := g.broker.Log().Mark()
	if g.broker.Version().AtLeast(2, 1, 0) {
		// It is disconnected as soon as it has connected.
	} else if code := partner.unsubscribe("device/+/data"); code != device.NotAuthorized {
		g.Errorf("another one unsubscribes it: 0x%02x", code)
	}
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("reason=foreign_client_id ", "device=partner", "client=dashboard"))
	g.no(err)
	// A device that takes over the session of a client without an identity leaves it as it is.
	nameless := g.subscriber(g.device("viewer"), mqtt5, "screen", false)
	nameless.subscribe("device/+/data")
	nameless.cut()
	in := g.subscriber(g.device("sensor_002"), mqtt5, "screen", false)
	if code := in.unsubscribe("device/+/data"); code != device.NotAuthorized {
		g.Errorf("a device unsubscribes a dashboard: 0x%02x", code)
	}
	in.cut()
	d := g.device("sensor_001")
	m := d.Sign(`"for the screen"`)
	g.accept(g.connect(d, mqtt5), 1, m)
	back, err := g.device("viewer").ConnectV5(g.limit(), func(c *paho.Connect) { c.ClientID, c.CleanStart = "screen", false })
	g.no(err)
	g.Cleanup(func() { _ = back.Close() })
	g.accept(g.connect(d, mqtt5), 1, d.Sign("22"))
	_, err = back.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.HasSuffix([]byte(r.Topic), []byte("/data")) })
	g.no(err)
}

// usernameAsClientID is the setting that makes taking over another identity's session impossible.
const usernameAsClientID = "use_username_as_clientid true"

// TestUsernameAsClientID: with it on every listener, no client can have another's id; a listener without it lets in any.
func TestUsernameAsClientID(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, ListenerConf: usernameAsClientID, Listeners: []string{tlsListener},
	})
	one := g.subscriber(g.device("sensor_001"), mqtt5, "sensor_001", false)
	one.want(true, "", one.device.ResponseTopic())
	two := g.subscriber(g.device("sensor_002"), mqtt5, "sensor_001", true) // the broker renames it
	two.want(true, "", two.device.ResponseTopic())
	one.want(true, "", one.device.CommandTopic()) // still connected, and the session is its own
	mark := g.broker.Log().Mark()
	other := g.open(g.device("sensor_002").Via(g.broker.Address(1)), mqtt5, "sensor_001", false)
	if g.broker.Version().AtLeast(2, 1, 0) {
		// It is disconnected as soon as it has connected.
	} else if ack := other.publish(other.device.DataTopic(), packet{qos: 1, id: 1, Message: other.device.Sign("22")}); ack.Code != device.NotAuthorized {
		g.Errorf("by a listener without it: %v", ack)
	}
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("reason=foreign_client_id "))
	g.no(err)
}
