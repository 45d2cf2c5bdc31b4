package plugin

import (
	"fmt"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/subscription"
)

// subscribing is the subscription of a device to a topic below its response topic; n are those that the session has.
func subscribing(device, client string, connection uintptr, topic, n int) *gate.Publish {
	return &gate.Publish{
		Identity: []byte(device), Certified: true, ClientID: []byte(client), Connection: connection,
		Topic: fmt.Appendf(nil, "device/%s/response/%d", device, topic), Subscriptions: n,
	}
}

// TestSessionsInDoubtAreAskedFor: where the broker does not tell whether a session has ended with its connection, it is
// asked who is subscribed, and what nobody may read tells.
func TestSessionsInDoubtAreAskedFor(t *testing.T) {
	g := startGateway(t, "")
	g.brokerConf = new(brokerconf.Config)
	g.sessionQuestions.unasked = !g.asksSessions()
	connection := uintptr(1)
	fill := func(client string) {
		t.Helper()
		connection++
		for i := range subscription.MaxFilters {
			if g.Access(gate.Subscribe, subscribing("sensor_001", client, connection, i, i)) != gate.AllowCertified {
				t.Fatalf("subscription %d: %s", i, g.host.last())
			}
		}
		g.Disconnected(&gate.Publish{Identity: []byte("sensor_001"), ClientID: []byte(client), Connection: connection}, subscription.MayStay)
	}
	other := subscribing("sensor_001", "other", 100, 99, 0)
	fill("client")
	if g.Access(gate.Subscribe, other) != gate.Deny {
		t.Error("a session in doubt does not count")
	}
	g.Tick()
	if len(g.host.published) != 1 || len(g.host.published[0].Payload) != 16 {
		t.Fatalf("published %v", g.host.published)
	}
	question := &gate.Publish{Identity: []byte("sensor_001"), ClientID: []byte("client"), Topic: []byte(g.host.published[0].Topic), Payload: g.host.published[0].Payload}
	if g.Access(gate.Read, question) != gate.Deny {
		t.Error("the question may be read")
	}
	for range 4 {
		g.Tick()
	}
	if g.Access(gate.Subscribe, other) != gate.Deny {
		t.Error("a session that is still there does not count")
	}
	fill("client") // and now nobody answers
	for range 4 {
		g.Tick()
	}
	if g.Access(gate.Subscribe, other) != gate.AllowCertified {
		t.Error(g.host.last())
	}
}

// away has a device subscribe over a session for each topic and leave. The broker says that the sessions last.
func (g *aGateway) away(t *testing.T, device string, topics int) {
	t.Helper()
	for i := range topics {
		connection := uintptr(1000 + i)
		client := fmt.Sprint(device, "-", i)
		if g.Access(gate.Subscribe, subscribing(device, client, connection, i, 0)) != gate.AllowCertified {
			t.Fatalf("subscription %d: %s", i, g.host.last())
		}
		g.Disconnected(&gate.Publish{Identity: []byte(device), ClientID: []byte(client), Connection: connection}, subscription.Stays)
	}
}

// TestSessionsThatExpireAreFound: sessions that lasted and have expired since, of which the broker tells nobody, make room
// for a device with new client ids.
func TestSessionsThatExpireAreFound(t *testing.T) {
	g := startGateway(t, "")
	g.brokerConf = new(brokerconf.Config)
	g.sessionQuestions.unasked = !g.asksSessions()
	g.away(t, "sensor_001", subscription.MaxFilters)
	more := subscribing("sensor_001", "more", 1, 99, 0)
	if g.Access(gate.Subscribe, more) != gate.Deny {
		t.Fatal("sessions that last do not count")
	}
	for range 4 {
		g.Tick() // those which the refusal has in doubt
	}
	if g.Access(gate.Subscribe, more) != gate.AllowCertified {
		t.Errorf("sessions that nobody answers for count: %s", g.host.last())
	}
	for i := range g.sessionQuestions.later {
		g.sessionQuestions.later[i].due = time.Now()
	}
	for range 10 {
		g.Tick()
	}
	if n := len(g.sessionQuestions.later) + len(g.sessionQuestions.listed); n != 0 {
		t.Errorf("%d questions are left", n)
	}
}

// TestSessionsThatCannotBeAskedFor: where the broker has a bridge, a session that is away counts for an hour.
func TestSessionsThatCannotBeAskedFor(t *testing.T) {
	g := startGateway(t, "")
	g.brokerConf = nil
	g.sessionQuestions.unasked = !g.asksSessions()
	g.away(t, "sensor_001", subscription.MaxFilters)
	more := subscribing("sensor_001", "more", 1, 99, 0)
	if g.Access(gate.Subscribe, more) != gate.Deny {
		t.Fatal("sessions that last do not count")
	}
	for i := range g.sessionQuestions.later {
		g.sessionQuestions.later[i].due = time.Now()
	}
	if g.Access(gate.Subscribe, more) != gate.AllowCertified {
		t.Error(g.host.last())
	}
	if len(g.host.published) != 0 {
		t.Errorf("asked: %v", g.host.published)
	}
}

// TestWithoutTheCertificate: who bears a device's name without its certificate is bounded too, takes none of the device's
// room, and with its client id is refused and disconnected.
func TestWithoutTheCertificate(t *testing.T) {
	g := startGateway(t, "")
	g.brokerConf = new(brokerconf.Config)
	for i := range 2 * subscription.MaxFilters {
		p := subscribing("sensor_001", "x", 1, i, i)
		p.Certified = false
		if d := g.Access(gate.Subscribe, p); (d == gate.Deny) != (i >= subscription.MaxFilters) {
			t.Errorf("subscription %d: %v", i, d)
		}
	}
	if g.Access(gate.Subscribe, subscribing("sensor_001", "sensor_001", 2, 0, 0)) != gate.AllowCertified {
		t.Errorf("the device is refused: %s", g.host.last())
	}
	for _, otherIssuer := range []bool{false, true} {
		p := subscribing("sensor_001", "sensor_001", 3, 0, 0)
		p.Certified, p.OtherIssuer = otherIssuer, otherIssuer
		for _, action := range []gate.Action{gate.Subscribe, gate.Unsubscribe} {
			if g.Access(action, p) != gate.Deny {
				t.Errorf("action %d is allowed", action)
			}
			if len(g.offenders.waiting) != 1 {
				t.Error("is not going to be disconnected")
			}
			clear(g.offenders.waiting)
		}
	}
}
