package plugin

import (
	"fmt"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/subscription"
)

// reconnect ends the connection that p came on.
func (g *aGateway) reconnect(p *gate.Publish) {
	g.Disconnected(p, subscription.MayStay)
	g.Tick()
}

// firstDisposition is the disposition of a message that is accepted.
func firstDisposition(qos byte) gate.Disposition {
	if qos == 2 {
		return gate.Relay
	}
	return gate.Route
}

func TestRedelivery(t *testing.T) {
	const reconnect, stay = true, false
	for _, c := range []struct {
		name        string
		first, then byte // QoS
		reconnect   bool
		change      func(p *gate.Publish)
		want        gate.Disposition
	}{
		{"QoS 1 on a new connection", 1, 1, reconnect, nil, gate.Swallow},
		{"QoS 2 on a new connection", 2, 2, reconnect, nil, gate.Swallow},
		{"QoS 0 and then 1", 0, 1, reconnect, nil, gate.Refuse},
		{"QoS 0 and then 2", 0, 2, reconnect, nil, gate.Refuse},
		{"QoS 1 and then 2", 1, 2, reconnect, nil, gate.Refuse},
		{"QoS 2 and then 1", 2, 1, reconnect, nil, gate.Refuse},
		{"QoS 1 and then 0", 1, 0, reconnect, nil, gate.Refuse},
		{"QoS 2 and then 0", 2, 0, reconnect, nil, gate.Refuse},
		{"on the same connection", 1, 1, stay, nil, gate.Refuse},
		{"on the same connection, QoS 2", 2, 2, stay, nil, gate.Refuse},
		{"retained", 1, 1, reconnect, func(p *gate.Publish) { p.Retain = !p.Retain }, gate.Refuse},
		{"retained, QoS 2", 2, 2, reconnect, func(p *gate.Publish) { p.Retain = !p.Retain }, gate.Refuse},
		{"on another gated topic", 1, 1, reconnect, func(p *gate.Publish) { p.Topic = []byte("alarm/sensor_001") }, gate.Refuse},
		{"on another gated topic, QoS 2", 2, 2, reconnect, func(p *gate.Publish) { p.Topic = []byte("alarm/sensor_001") }, gate.Refuse},
		{"from another client id", 1, 1, reconnect, func(p *gate.Publish) { p.ClientID = []byte("other") }, gate.Refuse},
		{"tampered with", 1, 1, reconnect, func(p *gate.Publish) {
			p.Payload = []byte(strings.Replace(string(p.Payload), ":22}", ":99}", 1))
		}, gate.Refuse},
	} {
		for _, retained := range []bool{false, true} {
			for _, restart := range []bool{false, true} {
				if restart && !c.reconnect {
					continue
				}
				t.Run(fmt.Sprintf("%s, retained %v, restart %v", c.name, retained, restart), func(t *testing.T) {
					g := startGateway(t, "[publish]\ntopics = [\"device/+/data\", \"alarm/+\"]\n")
					p := g.fresh("sensor_001")
					p.QoS, p.Retain = c.first, retained
					original := *p
					if got := g.send(p); got != firstDisposition(c.first) {
						t.Fatalf("disposition %d: %s", got, g.host.last())
					}
					if restart {
						g.restart()
					} else if c.reconnect {
						g.reconnect(p)
					}
					p.QoS = c.then
					if c.change != nil {
						c.change(p)
					}
					got := g.send(p)
					if got != c.want {
						t.Errorf("disposition %d, want %d; the log says %s", got, c.want, g.host.last())
					}
					if got == gate.Refuse && !strings.Contains(g.host.last(), "reason=replay") {
						t.Errorf("the log says %s", g.host.last())
					}
					if got == gate.Swallow {
						if got := g.send(p); got != gate.Refuse || !strings.Contains(g.host.last(), "reason=replay") {
							t.Errorf("the second repetition on one connection: disposition %d, %s", got, g.host.last())
						}
					}
					// A refused message does not block later ones.
					if got == gate.Refuse && c.first > 0 && c.reconnect {
						if got := g.send(&original); got != gate.Swallow {
							t.Errorf("the true redelivery: disposition %d, %s", got, g.host.last())
						}
					}
					if n := g.Stats().Accounts.Accepted; n != 1 {
						t.Errorf("%d messages were accepted, want 1", n)
					}
				})
			}
		}
	}
}

// A message is routed once, regardless of how often it comes again, on how many connections and over restarts.
func TestRedeliveryNeverRoutesTwice(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		g := startGateway(t, "")
		p := g.fresh("sensor_001")
		p.QoS, p.Retain = qos, true
		if got := g.send(p); got != firstDisposition(qos) {
			t.Fatal(g.host.last())
		}
		for i := range 6 {
			if i%3 == 2 {
				g.restart()
			} else {
				g.reconnect(p)
			}
			if got := g.send(p); got != gate.Swallow {
				t.Errorf("QoS %d, redelivery %d: disposition %d, want %d", qos, i+1, got, gate.Swallow)
			}
		}
	}
}

// TestRelay: the gateway publishes every QoS 2 message itself, and also what comes on the same topic before the broker has
// published it.
func TestRelay(t *testing.T) {
	g := startGateway(t, "[publish]\ntopics = [\"device/+/data\", \"alarm/+\"]\n")
	expect := func(what string, qos byte, topic string, want gate.Disposition) {
		t.Helper()
		p := g.fresh("sensor_001")
		p.QoS = qos
		if topic != "" {
			p.Topic = []byte(topic)
		}
		if got := g.send(p); got != want {
			t.Errorf("%s: disposition %d, want %d; the log says %s", what, got, want, g.host.last())
		}
	}
	expect("QoS 0", 0, "", gate.Route)
	expect("QoS 1", 1, "", gate.Route)
	expect("QoS 2", 2, "", gate.Relay)
	expect("QoS 0 behind it", 0, "", gate.Relay)
	expect("QoS 1 behind it", 1, "", gate.Relay)
	expect("QoS 1 on another topic", 1, "alarm/sensor_001", gate.Route)
	expect("QoS 2 again", 2, "", gate.Relay)
	g.Tick()
	expect("QoS 1 after a tick", 1, "", gate.Route)
	expect("QoS 2 after a tick", 2, "alarm/sensor_001", gate.Relay)
	expect("QoS 1 on the first topic", 1, "", gate.Route)
}

// A delivery of what the gateway has published itself is like any other, regardless of how often the device reconnects.
func TestRelayedMessagesMayBeRead(t *testing.T) {
	g := startGateway(t, "")
	p := g.fresh("sensor_001")
	p.QoS = 2
	if g.send(p) != gate.Relay {
		t.Fatal(g.host.last())
	}
	for range 3 {
		g.reconnect(p)
		for _, reader := range []string{"dashboard", "archive"} {
			if got := g.Access(gate.Read, by(p, reader, "")); got != gate.NotConcerned {
				t.Errorf("%s: decision %d", reader, got)
			}
		}
		g.send(p)
	}
}
