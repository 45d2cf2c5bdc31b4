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
			t.Fatalf("disposition %d: %s", got, g.host.last())
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

// TestServeRetained: after a restart the broker asks about what the gateway published, without a user name and a client id.
func TestServeRetained(t *testing.T) {
	g := startGateway(t, "")
	p := g.fresh("sensor_001")
	p.QoS, p.Retain = 2, true
	if g.send(p) != gate.Relay {
		t.Fatal(g.host.last())
	}
	unnamed := gate.Publish{Topic: p.Topic, Payload: p.Payload, Retain: true}
	for _, c := range []struct {
		name   string
		change func(p *gate.Publish)
		want   gate.Decision
	}{
		{"without a name", func(*gate.Publish) {}, gate.Allow},
		{"the device", func(p *gate.Publish) { p.Identity, p.ClientID = []byte("sensor_001"), []byte("c") }, gate.Allow},
		{"an anonymous client", func(p *gate.Publish) { p.ClientID = []byte("c") }, gate.Deny},
		{"another device", func(p *gate.Publish) { p.Identity = []byte("sensor_002") }, gate.Deny},
		{"without a name, on another's topic", func(p *gate.Publish) { p.Topic = []byte("device/sensor_002/data") }, gate.Deny},
		{"without a name, unsigned", func(p *gate.Publish) { p.Payload = []byte(`{"t":22}`) }, gate.Deny},
		{"without a name, elsewhere", func(p *gate.Publish) { p.Topic = []byte("site/status") }, gate.NotConcerned},
	} {
		q := unnamed
		c.change(&q)
		if got := g.ServeRetained(&q); got != c.want {
			t.Errorf("%s: decision %d, want %d", c.name, got, c.want)
		}
	}
}
