package plugin

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/order"
	"mosquitto-bouncer/plugin/registry"
)

// A retained message that was accepted is served as long as its device is registered, over restarts, and even when the
// device's secret changes.
func TestRetainedMessagesOutliveTheirSecret(t *testing.T) {
	g := startGateway(t, "")
	p := g.fresh("sensor_001")
	p.Retain = true
	if g.send(p) != gate.Route {
		t.Fatal(g.host.last())
	}
	asked := *p // as the broker asks: of no connection
	asked.Certified, asked.ClientID, asked.Connection = false, nil, 0
	g.change(func(ctx context.Context, s *registry.Store) error {
		if err := s.Remove(ctx, "sensor_002"); err != nil {
			return err
		}
		return s.Rotate(ctx, "sensor_001", registry.Secret("another"), time.Now())
	})
	g.until("rotated", func() bool {
		return g.registry.Lookup([]byte("sensor_002")) == nil && len(g.registry.Lookup([]byte("sensor_001")).Secrets) == 1 &&
			string(g.registry.Lookup([]byte("sensor_001")).Secrets[0]) == "another"
	})
	if g.Retained(&asked) != gate.Allow {
		t.Error("the rotation hides a good message")
	}
	never := asked
	never.Payload = sign(t, "s", "sensor_001", time.Now().Unix(), uuid.NewString(), "1")
	if g.Retained(&never) != gate.Deny {
		t.Error("a message that was never accepted, signed with a secret that has ended, is served")
	}
	g.restart()
	if g.Retained(&asked) != gate.Allow {
		t.Error("the rotation and a restart hide a good message")
	}
	g.change(func(ctx context.Context, s *registry.Store) error { return s.Remove(ctx, "sensor_001") })
	g.until("removed", func() bool { return g.registry.Lookup([]byte("sensor_001")) == nil })
	if g.Retained(&asked) != gate.Deny {
		t.Error("a removed device's message is served")
	}
	g.change(func(ctx context.Context, s *registry.Store) error {
		return s.Add(ctx, "sensor_001", registry.Secret("third"))
	})
	g.until("added", func() bool { return g.registry.Lookup([]byte("sensor_001")) != nil })
	if g.Retained(&asked) != gate.Deny {
		t.Error("a message from before the registration is served")
	}
}

func TestRetainedMessagesAreCleared(t *testing.T) {
	g := startGateway(t, "[publish]\ntopics = [\"device/+/data\", \"site/+/state\"]\n")
	give := func(o order.Order) error {
		t.Helper()
		o.Kind, o.At = order.ClearRetained, time.Now()
		done := make(chan error, 1)
		go func() { done <- order.Give(t.Context(), filepath.Join(g.dir, order.DirName), o) }()
		var err error
		g.until("carried out", func() bool {
			select {
			case err = <-done:
				return true
			default:
				return false
			}
		})
		return err
	}
	if err := give(order.Order{Devices: []string{"never_registered"}, Names: []string{"device/sensor_001/data"}}); err != nil {
		t.Fatal(err)
	}
	cleared := map[string]bool{}
	for _, p := range g.host.published {
		if len(p.Payload) == 0 && p.Retain {
			cleared[p.Topic] = true
		}
	}
	for _, topic := range []string{"device/sensor_001/data", "device/never_registered/data", "site/never_registered/state", "device/never_registered/response"} {
		if !cleared[topic] {
			t.Errorf("%s was not cleared, but %v", topic, cleared)
		}
	}
	before := len(g.host.published)
	for _, topic := range []string{"news", "$SYS/broker/uptime", "device/sensor_001/other"} {
		if err := give(order.Order{Names: []string{topic}}); err == nil {
			t.Errorf("%s was cleared", topic)
		}
	}
	if len(g.host.published) != before {
		t.Errorf("published: %v", g.host.published[before:])
	}
}

// Properties count like the payload.
func TestPropertiesAreCounted(t *testing.T) {
	g := startGateway(t, "[publish]\nmax_bytes = 1000\n")
	for i, c := range []struct {
		bytes int
		want  gate.Disposition
	}{{0, gate.Route}, {500, gate.Route}, {1000, gate.Refuse}, {1 << 20, gate.Refuse}, {-1, gate.Refuse}} {
		p := g.fresh("sensor_001")
		p.PropertyBytes = c.bytes
		if o := g.send(p); o != c.want {
			t.Errorf("%d bytes of properties: disposition %d", c.bytes, o)
		}
		if c.want == gate.Refuse && g.host.count("reason=too_large") != i-1 {
			t.Errorf("%d bytes: the log says %q", c.bytes, g.host.last())
		}
	}
}
