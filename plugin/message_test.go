package plugin

import (
	"strings"
	"testing"
	"unsafe"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/outbox"
	"mosquitto-bouncer/plugin/subscription"
)

// TestAPanicRemembersNothing: a message that was refused because of a panic before it was stored does not count as accepted
// when it comes again. Otherwise a message would be acknowledged that is not stored anywhere.
func TestAPanicRemembersNothing(t *testing.T) {
	g := startGateway(t, "")
	if o := g.send(g.fresh("sensor_001")); o != gate.Route {
		t.Fatalf("disposition %d: %s", o, g.host.last())
	}
	p := g.fresh("sensor_001")
	p.Properties = unsafe.Pointer(p)
	g.host.faulty = true // in the middle of an acceptance
	if o := g.send(p); o != gate.Refuse || !strings.Contains(g.host.last(), "reason=internal") {
		t.Fatalf("disposition %d: %s", o, g.host.last())
	}
	g.host.faulty = false
	g.Disconnected(p, subscription.MayStay)
	g.Tick()
	p.Connection++
	if o := g.send(p); o != gate.Route {
		t.Errorf("it came again: disposition %d: %s", o, g.host.last())
	}
	g.tickUntil("delivery", func() bool { return g.Stats().Accounts == outbox.Accounts{Accepted: 2, Delivered: 2} })
}
