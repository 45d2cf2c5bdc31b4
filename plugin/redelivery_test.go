package plugin

import (
	"fmt"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/subscription"
)

// reconnect ends the connection that p came on.
func (g *aGateway) reconnect(p *gate.Publish) {
	g.Disconnected(p, subscription.MayStay)
	g.Tick()
}

// firstOutcome is what becomes of a message that is accepted.
func firstOutcome(qos byte) gate.Disposition {
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
					if got := g.send(p); got != firstOutcome(c.first) {
						t.Fatalf("outcome %d: %s", got, g.host.last())
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
						t.Errorf("outcome %d, want %d; the log says %s", got, c.want, g.host.last())
					}
					if got == gate.Refuse && !strings.Contains(g.host.last(), "reason=replay") {
						t.Errorf("the log says %s", g.host.last())
					}
					if got == gate.Swallow {
						if got := g.send(p); got != gate.Refuse || !strings.Contains(g.host.last(), "reason=replay") {
							t.Errorf("the second repetition on one connection: outcome %d, %s", got, g.host.last())
						}
					}
					// What was refused is in nobody's way.
					if got == gate.Refuse && c.first > 0 && c.reconnect {
						if got := g.send(&original); got != gate.Swallow {
							t.Errorf("the true redelivery: outcome %d, %s", got, g.host.last())
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

// However often a message comes again, on however many connections and over restarts, it is routed once.
func TestRedeliveryNeverRoutesTwice(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		g := startGateway(t, "")
		p := g.fresh("sensor_001")
		p.QoS, p.Retain = qos, true
		if got := g.send(p); got != firstOutcome(qos) {
			t.Fatal(g.host.last())
		}
		for i := range 6 {
			if i%3 == 2 {
				g.restart()
			} else {
				g.reconnect(p)
			}
			if got := g.send(p); got != gate.Swallow {
				t.Errorf("QoS %d, redelivery %d: outcome %d, want %d", qos, i+1, got, gate.Swallow)
			}
		}
	}
}

// TestRedeliveryUnderAUserName: from when the broker gives clients their user name for a client id, a message of before is
// known under it, until it is forgotten.
func TestRedeliveryUnderAUserName(t *testing.T) {
	for _, set := range []bool{false, true} {
		g := startGateway(t, "")
		before, unchanged := g.fresh("sensor_001"), g.fresh("sensor_001")
		unchanged.ClientID = []byte("sensor_001")
		for _, p := range []*gate.Publish{before, unchanged} {
			if g.send(p) != gate.Route {
				t.Fatal(g.host.last())
			}
		}
		g.restart()
		g.decision.userNameIsClientID = set
		if got := g.send(unchanged); got != gate.Swallow {
			t.Errorf("set %v, a client id that has not changed: outcome %d", set, got)
		}
		before.ClientID = []byte("third")
		if got := g.send(before); got != gate.Refuse {
			t.Errorf("set %v, a client id that is no user name: outcome %d", set, got)
		}
		before.Topic, before.ClientID = []byte("device/sensor_001/data"), []byte("sensor_001")
		before.Retain = true
		if got := g.send(before); got != gate.Refuse {
			t.Errorf("set %v, retained: outcome %d", set, got)
		}
		before.Retain = false
		want := gate.Refuse
		if set {
			want = gate.Swallow
		}
		if got := g.send(before); got != want {
			t.Errorf("set %v, the new client id: outcome %d, want %d", set, got, want)
		}
		if got := g.send(before); got != gate.Refuse {
			t.Errorf("set %v, once more on this connection: outcome %d", set, got)
		}
		g.reconnect(before)
		if got := g.send(before); got != want {
			t.Errorf("set %v, on the next connection: outcome %d, want %d", set, got, want)
		}
	}
}

// TestRedeliveryOfAnEarlierVersion has records of the journal's format 1, which tell less.
func TestRedeliveryOfAnEarlierVersion(t *testing.T) {
	b := newBench(t)
	d := b.devices.of(b.registered["sensor_001"])
	p := publish("sensor_001", sign(t, "supersecretkey123", "sensor_001", now, anID, "1"))
	p.QoS = 2
	e, reason, _ := b.judge(p)
	if reason != gate.Accepted {
		t.Fatal(reason)
	}
	old := journal.Accepted{Legacy: true, Topic: p.Topic, QoS: 2, Client: hashClient(p.ClientID)}
	copy(old.Tag[:8], e.Signature)
	b.seen.Insert(d.registered.Serial, e.MessageID, now, recoveredEntry(&old))
	expect := func(what string, want gate.Reason, change func(p *gate.Publish)) {
		t.Helper()
		q := *p
		change(&q)
		if _, got, _ := b.judge(&q); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	expect("the same", gate.Redelivered, func(p *gate.Publish) {})
	expect("retained, of which it tells nothing", gate.Redelivered, func(p *gate.Publish) { p.Retain = true })
	expect("QoS 1", gate.Replay, func(p *gate.Publish) { p.QoS = 1 })
	expect("QoS 0", gate.Replay, func(p *gate.Publish) { p.QoS = 0 })
	expect("another client", gate.Replay, func(p *gate.Publish) { p.ClientID = []byte("other") })
	expect("another signature", gate.Replay, func(p *gate.Publish) { p.Payload = sign(t, "supersecretkey123", "sensor_001", now, anID, "2") })

	old.Topic = []byte("alarm/sensor_001")
	b.seen.Update(d.registered.Serial, e.MessageID, recoveredEntry(&old))
	expect("on another topic", gate.Replay, func(p *gate.Publish) {})
	old.Topic = nil
	b.seen.Update(d.registered.Serial, e.MessageID, recoveredEntry(&old))
	expect("the topic is not known", gate.Replay, func(p *gate.Publish) {})
	b.seen.Update(d.registered.Serial, e.MessageID, replay.Entry{})
	expect("nothing is known", gate.Replay, func(p *gate.Publish) {})
}

// TestMessageTags: every difference makes another tag.
func TestMessageTags(t *testing.T) {
	tags := map[messageTag]string{}
	kept := map[[12]byte]string{}
	for _, mac := range [][32]byte{{}, {1}, {7: 1}, {7: 4}, {15: 1}} {
		for _, topic := range []string{"device/a/data", "device/b/data", "device/a/dat", "a"} {
			for qos := range byte(3) {
				for _, retain := range []bool{false, true} {
					hash := hashTopic([]byte(topic))
					tag := newMessageTag(mac[:], &hash, qos, retain)
					what := fmt.Sprintf("%x %s QoS %d, retain %v", mac, topic, qos, retain)
					// Not so of MACs that differ like flags do, which nobody can choose.
					if mac[7] == 0 {
						if other, found := tags[tag]; found {
							t.Errorf("%s has the tag of %s", what, other)
						}
						tags[tag] = what
					}
					for _, client := range []string{"a", "b"} {
						what := what + " from " + client
						k := tag.from(hashClient([]byte(client)))
						if other, found := kept[k]; found && mac[7] == 0 && mac[15] == 0 {
							t.Errorf("of %s is kept what is of %s", what, other)
						}
						kept[k] = what
					}
				}
			}
		}
	}
}

// Neither a verdict nor what is remembered of a message takes memory while a device stays with its topic.
func TestTagsTakeNoMemory(t *testing.T) {
	b := newBench(t)
	d := b.devices.of(b.registered["sensor_001"])
	p := publish("sensor_001", sign(t, "supersecretkey123", "sensor_001", now, anID, "1"))
	e, _, _ := b.judge(p)
	if n := testing.AllocsPerRun(100, func() { d.remember(p, e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRelay has the gateway publish every QoS 2 message itself, and what comes on the same topic before that is out.
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
			t.Errorf("%s: outcome %d, want %d; the log says %s", what, got, want, g.host.last())
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

func TestRelayOfManyTopics(t *testing.T) {
	r := newRelay()
	for n := range maxRelayTopics + 2 {
		topic := fmt.Append(nil, "device/", n)
		if r.takes(topic, 1) != (n > maxRelayTopics) {
			t.Errorf("topic %d is not told from those before", n)
		}
		for _, qos := range []byte{2, 2, 1, 0} {
			if !r.takes(topic, qos) {
				t.Errorf("topic %d at QoS %d", n, qos)
			}
		}
	}
	if !r.takes([]byte("device/0"), 0) {
		t.Error("the first topic is forgotten")
	}
	r.ticked()
	if r.takes([]byte("device/0"), 1) {
		t.Error("after a tick")
	}
	if n := testing.AllocsPerRun(100, func() { r.takes([]byte("device/0"), 2); r.ticked() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A delivery of what the gateway has published itself is a delivery like any other, however often the device comes again.
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
