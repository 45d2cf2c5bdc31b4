package plugin

import (
	"fmt"
	"testing"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/subscription"
)

// subscribing is the subscription of a device to a topic below its response topic; n are those that the session has.
func subscribing(device, client string, connection uintptr, topic, n int) *Publish {
	return &Publish{
		Identity: []byte(device), Certified: true, ClientID: []byte(client), Connection: connection,
		Topic: fmt.Appendf(nil, "device/%s/response/%d", device, topic), Subscriptions: n,
	}
}

// TestSessionsInDoubtAreAskedFor: where the broker does not tell whether a session has ended with its connection, it is
// asked who is subscribed, and what nobody may read tells.
func TestSessionsInDoubtAreAskedFor(t *testing.T) {
	g := startGateway(t, "")
	g.brokerConf = new(brokerconf.Config)
	connection := uintptr(1)
	fill := func(client string) {
		t.Helper()
		connection++
		for i := range subscription.MaxFilters {
			if g.Access(Subscribe, subscribing("sensor_001", client, connection, i, i)) != AllowCertified {
				t.Fatalf("subscription %d: %s", i, g.host.last())
			}
		}
		g.Disconnected(&Publish{Identity: []byte("sensor_001"), ClientID: []byte(client), Connection: connection}, subscription.MayStay)
	}
	other := subscribing("sensor_001", "other", 100, 99, 0)
	fill("client")
	if g.Access(Subscribe, other) != Deny {
		t.Error("a session in doubt does not count")
	}
	g.Tick()
	if len(g.host.published) != 1 || len(g.host.published[0].Payload) != 16 {
		t.Fatalf("published %v", g.host.published)
	}
	question := &Publish{Identity: []byte("sensor_001"), ClientID: []byte("client"), Topic: []byte(g.host.published[0].Topic), Payload: g.host.published[0].Payload}
	if g.Access(Read, question) != Deny {
		t.Error("the question may be read")
	}
	for range 4 {
		g.Tick()
	}
	if g.Access(Subscribe, other) != Deny {
		t.Error("a session that is still there does not count")
	}
	fill("client") // and now nobody answers
	for range 4 {
		g.Tick()
	}
	if g.Access(Subscribe, other) != AllowCertified {
		t.Error(g.host.last())
	}
}
