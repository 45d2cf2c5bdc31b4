package gate

import (
	"fmt"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/registry"
)

func TestAPanicRefuses(t *testing.T) {
	g := startGate(t, nil)
	p := g.fresh("sensor_001")
	registered := g.registry
	if g.Access(Write, g.fresh("sensor_002")) != Allow { // a good verdict that must not be used for p
		t.Fatal(g.host.last())
	}
	g.registry = nil
	if d := g.Access(Write, p); d != Deny {
		t.Errorf("decision %d", d)
	}
	if o := g.Message(p); o != Refuse {
		t.Errorf("disposition %d", o)
	}
	g.registry = registered
	if g.send(p) != Route {
		t.Errorf("afterwards: %s", g.host.last())
	}
	if g.log.Count("internal error, caught") != 2 {
		t.Errorf("the log says %q", g.log.String())
	}
}

// TestRevokedAreTakenAFewAtATime: however many devices are disabled at once, a tick disconnects some of them.
func TestRevokedAreTakenAFewAtATime(t *testing.T) {
	g := startGate(t, nil)
	changes := make([]registry.Change, maxRevoked+2)
	for i := range changes {
		changes[i] = registry.Change{ID: fmt.Sprint("d", i), What: registry.Disabled}
	}
	if !g.Revoke(changes) {
		t.Error("no tick is asked for")
	}
	g.tick()
	if n := len(g.host.kicked); n != maxKicksPerTick || g.host.kicked[0] != "user d0" {
		t.Errorf("%d disconnected, first %q", n, g.host.kicked[0])
	}
	if !strings.Contains(g.host.last(), "count=2") {
		t.Errorf("the log does not say that two had no room: %s", g.host.last())
	}
	for n := maxKicksPerTick; g.revoked.Len() > 0; n = len(g.host.kicked) {
		g.tick()
		if len(g.host.kicked) == n {
			t.Fatal("none disconnected")
		}
	}
	if n := len(g.host.kicked); n != maxRevoked {
		t.Errorf("%d in all", n)
	}
	if g.Revoke([]registry.Change{{ID: "d1", What: registry.Added}, {ID: "d2", What: registry.NewSecrets}}) || g.revoked.Len() > 0 {
		t.Error("a device that may publish is disconnected")
	}
}
