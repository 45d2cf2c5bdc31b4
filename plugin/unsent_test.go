package plugin

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/registry"
)

// kept returns the payloads of what u holds.
func kept(u *unsent) (payloads []string) {
	for _, m := range u.all() {
		payloads = append(payloads, string(m.Payload))
	}
	return payloads
}

// TestUnsent goes through rounds of the event loop as the versions of the broker have them.
func TestUnsent(t *testing.T) {
	for _, c := range []struct {
		name string
		u    unsent
		// 'm' adds a message, '.' is a TICK, 'x' the failure of the last message.
		rounds string
		want   string // the numbers of the messages that are left
	}{
		{"2.0, the last round", unsent{}, "mm.mm.", "[2 3]"},
		{"2.0, an idle round behind it", unsent{}, "mm..", "[]"},
		{"2.0, a message after the idle round", unsent{}, "mm..m.", "[2]"},
		{"2.0, an error ends the loop before the TICK", unsent{}, "m.mm", "[1 2]"},
		{"2.0, no message", unsent{}, "...", "[]"},
		{"2.0, two listeners with the plugin", unsent{sharers: 1}, "m..m..", "[1]"},
		{"2.0, two listeners, an idle round", unsent{sharers: 1}, "m...", "[]"},
		{"2.1, the last round", unsent{publishesBeforeTick: true}, ".m.mm", "[1 2]"},
		{"2.1, an idle round behind it", unsent{publishesBeforeTick: true}, ".mm.", "[]"},
		{"one that the broker did not take", unsent{}, "mmx", "[0]"},
		{"and another one", unsent{}, "mxxm", "[1]"},
	} {
		n := 0
		for _, event := range c.rounds {
			switch event {
			case 'm':
				c.u.add(&gate.Publish{Topic: []byte("topic"), Payload: fmt.Append(nil, n)}, nil)
				n++
			case '.':
				c.u.ticked()
			case 'x':
				c.u.removeLast()
			}
		}
		if got := fmt.Sprint(kept(&c.u)); got != c.want {
			t.Errorf("%s: %s is left, want %s", c.name, got, c.want)
		}
	}
}

// TestUnsentIsBounded: what is beyond the bound is counted, and takes nothing back that is within.
func TestUnsentIsBounded(t *testing.T) {
	var u unsent
	large := &gate.Publish{Payload: make([]byte, maxUnsentBytes/2)}
	for range 4 {
		u.add(large, nil)
	}
	u.removeLast()
	if len(u.messages) != 2 || u.dropped != 2 {
		t.Errorf("%d are kept, %d dropped", len(u.messages), u.dropped)
	}
	u.ticked()
	u.ticked()
	if len(u.messages) != 0 || u.dropped != 0 || cap(u.data) > keepUnsentBytes {
		t.Errorf("%d are kept, %d dropped, in %d bytes", len(u.messages), u.dropped, cap(u.data))
	}
	small := &gate.Publish{Topic: []byte("topic"), Payload: []byte("payload")}
	if n := testing.AllocsPerRun(100, func() { u.add(small, nil); u.ticked(); u.ticked() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestUnsentIsPublishedOnce stops the gateway with messages that the broker has been given and has not published.
func TestUnsentIsPublishedOnce(t *testing.T) {
	g := startGateway(t, "[publish]\ntopics = [\"device/+/data\", \"alarm/+\"]\n")
	g.Tick()
	var want []string
	send := func(device, topic string, qos byte, retain bool) {
		t.Helper()
		p := g.fresh(device)
		p.Topic, p.QoS, p.Retain, p.Properties = []byte(topic), qos, retain, unsafe.Pointer(t)
		if got := g.send(p); got != gate.Relay {
			t.Fatalf("outcome %d: %s", got, g.host.last())
		}
		if device == "sensor_001" {
			want = append(want, fmt.Sprint(topic, " ", string(p.Payload), qos, retain))
		}
	}
	send("sensor_001", "device/sensor_001/data", 2, true)
	send("sensor_001", "device/sensor_001/data", 0, false)
	send("sensor_002", "device/sensor_002/data", 2, false)
	send("sensor_001", "alarm/sensor_001", 2, false)
	g.Tick()
	g.change(func(ctx context.Context, s *registry.Store) error { return s.Remove(ctx, "sensor_002") })
	g.host.published = nil
	g.restart()
	var got []string
	for _, p := range g.host.published {
		got = append(got, fmt.Sprint(p.Topic, " ", string(p.Payload), p.QoS, p.Retain))
		if string(p.Properties) != "properties" {
			t.Errorf("with %q", p.Properties)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("published %q, want %q", got, want)
	}
	if !strings.Contains(strings.Join(g.host.lines, "\n"), "messages=3 of=4") {
		t.Errorf("the log says nothing of it: %s", g.host.last())
	}
	g.host.published = nil
	g.restart()
	if len(g.host.published) > 0 {
		t.Errorf("published once more: %v", g.host.published)
	}
}

// TestUnsentWithoutTicks: a broker that never ticks does not show what it has published; nothing goes out twice.
func TestUnsentWithoutTicks(t *testing.T) {
	g := startGateway(t, "")
	p := g.fresh("sensor_001")
	p.QoS = 2
	if g.send(p) != gate.Relay {
		t.Fatal(g.host.last())
	}
	g.restart()
	if len(g.host.published) > 0 {
		t.Errorf("published %v", g.host.published)
	}
}

// TestServeRetained: after a restart the broker asks about what the gateway published in the name of nobody.
func TestServeRetained(t *testing.T) {
	g := startGateway(t, "")
	p := g.fresh("sensor_001")
	p.QoS, p.Retain = 2, true
	if g.send(p) != gate.Relay {
		t.Fatal(g.host.last())
	}
	nobody := gate.Publish{Topic: p.Topic, Payload: p.Payload, Retain: true}
	for _, c := range []struct {
		name   string
		change func(p *gate.Publish)
		want   gate.Decision
	}{
		{"nobody", func(*gate.Publish) {}, gate.Allow},
		{"the device", func(p *gate.Publish) { p.Identity, p.ClientID = []byte("sensor_001"), []byte("c") }, gate.Allow},
		{"an anonymous client", func(p *gate.Publish) { p.ClientID = []byte("c") }, gate.Deny},
		{"another device", func(p *gate.Publish) { p.Identity = []byte("sensor_002") }, gate.Deny},
		{"nobody, on another's topic", func(p *gate.Publish) { p.Topic = []byte("device/sensor_002/data") }, gate.Deny},
		{"nobody, unsigned", func(p *gate.Publish) { p.Payload = []byte(`{"t":22}`) }, gate.Deny},
		{"nobody, elsewhere", func(p *gate.Publish) { p.Topic = []byte("site/status") }, gate.NotConcerned},
	} {
		q := nobody
		c.change(&q)
		if got := g.ServeRetained(&q); got != c.want {
			t.Errorf("%s: decision %d, want %d", c.name, got, c.want)
		}
	}
}
