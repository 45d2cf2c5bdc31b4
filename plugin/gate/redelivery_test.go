package gate

import (
	"fmt"
	"testing"

	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/replay"
)

// TestHashClient: it is the same in every run, and never 0.
func TestHashClient(t *testing.T) {
	if got := hashClient([]byte("the client")); got != 0x91bf5533 {
		t.Errorf("%#x", got)
	}
	if hashClient(nil) == 0 {
		t.Error("0 for no client id")
	}
}

// TestRedeliveryUnderAUserName: when the broker begins to use user names as client ids, a message from before is recognised
// under the new client id, until it is forgotten.
func TestRedeliveryUnderAUserName(t *testing.T) {
	for _, set := range []bool{false, true} {
		g := startGate(t, nil)
		before, unchanged := g.fresh("sensor_001"), g.fresh("sensor_001")
		unchanged.ClientID = []byte("sensor_001")
		for _, p := range []*Publish{before, unchanged} {
			if g.send(p) != Route {
				t.Fatal(g.host.last())
			}
		}
		g.restart(func(o *Options, _ *Settings) { o.UserNameIsClientID = set })
		if got := g.send(unchanged); got != Swallow {
			t.Errorf("set %v, a client id that has not changed: disposition %d", set, got)
		}
		before.ClientID = []byte("third")
		if got := g.send(before); got != Refuse {
			t.Errorf("set %v, a client id that is no user name: disposition %d", set, got)
		}
		before.Topic, before.ClientID = []byte("device/sensor_001/data"), []byte("sensor_001")
		before.Retain = true
		if got := g.send(before); got != Refuse {
			t.Errorf("set %v, retained: disposition %d", set, got)
		}
		before.Retain = false
		want := Refuse
		if set {
			want = Swallow
		}
		if got := g.send(before); got != want {
			t.Errorf("set %v, the new client id: disposition %d, want %d", set, got, want)
		}
		if got := g.send(before); got != Refuse {
			t.Errorf("set %v, once more on this connection: disposition %d", set, got)
		}
		g.reconnect(before)
		if got := g.send(before); got != want {
			t.Errorf("set %v, on the next connection: disposition %d, want %d", set, got, want)
		}
	}
}

// TestRedeliveryOfAnEarlierVersion has records of the journal's format 1, which have less information.
func TestRedeliveryOfAnEarlierVersion(t *testing.T) {
	b := newBench(t)
	d := b.devices.of(b.registered["sensor_001"])
	p := publish("sensor_001", sign(t, "supersecretkey123", "sensor_001", now, anID, "1"))
	p.QoS = 2
	e, reason, _ := b.judge(p)
	if reason != Accepted {
		t.Fatal(reason)
	}
	old := journal.Accepted{Legacy: true, Topic: p.Topic, QoS: 2, Client: hashClient(p.ClientID)}
	copy(old.Tag[:8], e.Signature)
	b.seen.Insert(d.registered.Serial, e.MessageID, now, RecoveredEntry(&old))
	expect := func(what string, want Reason, change func(p *Publish)) {
		t.Helper()
		q := *p
		change(&q)
		if _, got, _ := b.judge(&q); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	expect("the same", Redelivered, func(p *Publish) {})
	expect("retained, of which it tells nothing", Redelivered, func(p *Publish) { p.Retain = true })
	expect("QoS 1", Replay, func(p *Publish) { p.QoS = 1 })
	expect("QoS 0", Replay, func(p *Publish) { p.QoS = 0 })
	expect("another client", Replay, func(p *Publish) { p.ClientID = []byte("other") })
	expect("another signature", Replay, func(p *Publish) { p.Payload = sign(t, "supersecretkey123", "sensor_001", now, anID, "2") })

	old.Topic = []byte("alarm/sensor_001")
	b.seen.Update(d.registered.Serial, e.MessageID, RecoveredEntry(&old))
	expect("on another topic", Replay, func(p *Publish) {})
	old.Topic = nil
	b.seen.Update(d.registered.Serial, e.MessageID, RecoveredEntry(&old))
	expect("the topic is not known", Replay, func(p *Publish) {})
	b.seen.Update(d.registered.Serial, e.MessageID, replay.Entry{})
	expect("nothing is known", Replay, func(p *Publish) {})
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
					// Except of MACs that differ as flags do, which an attacker cannot choose.
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

// Neither a verdict nor what is remembered of a message allocates memory while a device uses the same topic.
func TestTagsTakeNoMemory(t *testing.T) {
	b := newBench(t)
	d := b.devices.of(b.registered["sensor_001"])
	p := publish("sensor_001", sign(t, "supersecretkey123", "sensor_001", now, anID, "1"))
	e, _, _ := b.judge(p)
	if n := testing.AllocsPerRun(100, func() { d.remember(p, e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
