package gate

import (
	"fmt"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/subscription"
)

// subscribing is the subscription of a device to a topic below its response topic; n are those that the session has.
func subscribing(device, client string, connection uintptr, topic, n int) *Publish {
	return &Publish{
		Identity: []byte(device), Certified: true, ClientID: []byte(client), Connection: connection,
		Topic: fmt.Appendf(nil, "device/%s/response/%d", device, topic), Subscriptions: n,
	}
}

// TestSessionsInDoubtAreAskedFor: where the broker does not tell whether a session has ended with its connection, a message
// that no client may read shows whether the session still exists.
func TestSessionsInDoubtAreAskedFor(t *testing.T) {
	g := startGate(t, nil)
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
	g.tick()
	if len(g.host.published) != 1 || len(g.host.published[0].Payload) != 16 {
		t.Fatalf("published %v", g.host.published)
	}
	question := &Publish{Identity: []byte("sensor_001"), ClientID: []byte("client"), Topic: []byte(g.host.published[0].Topic), Payload: g.host.published[0].Payload}
	if g.Access(Read, question) != Deny {
		t.Error("the question may be read")
	}
	for range 4 {
		g.tick()
	}
	if g.Access(Subscribe, other) != Deny {
		t.Error("a session that is still there does not count")
	}
	fill("client") // and now no session answers
	for range 4 {
		g.tick()
	}
	if g.Access(Subscribe, other) != AllowCertified {
		t.Error(g.host.last())
	}
}

// away makes a device subscribe over a session for each topic and disconnect. The broker says that the sessions stay.
func (g *aGate) away(t *testing.T, device string, topics int) {
	t.Helper()
	for i := range topics {
		connection := uintptr(1000 + i)
		client := fmt.Sprint(device, "-", i)
		if g.Access(Subscribe, subscribing(device, client, connection, i, 0)) != AllowCertified {
			t.Fatalf("subscription %d: %s", i, g.host.last())
		}
		g.Disconnected(&Publish{Identity: []byte(device), ClientID: []byte(client), Connection: connection}, subscription.Stays)
	}
}

// TestSessionsThatExpireAreFound: sessions that stayed and have expired since, which the broker does not report, make room for
// a device with new client ids.
func TestSessionsThatExpireAreFound(t *testing.T) {
	g := startGate(t, nil)
	g.away(t, "sensor_001", subscription.MaxFilters)
	more := subscribing("sensor_001", "more", 1, 99, 0)
	if g.Access(Subscribe, more) != Deny {
		t.Fatal("sessions that stay do not count")
	}
	for range 4 {
		g.tick() // those that may have ended, after the refusal
	}
	if g.Access(Subscribe, more) != AllowCertified {
		t.Errorf("sessions that do not answer count: %s", g.host.last())
	}
	for i := range g.sessions.later {
		g.sessions.later[i].due = time.Now()
	}
	for range 10 {
		g.tick()
	}
	if n := len(g.sessions.later) + len(g.sessions.listed); n != 0 {
		t.Errorf("%d questions are left", n)
	}
}

// TestSessionsThatCannotBeAskedFor: where the broker has a bridge, a session whose client is away counts for an hour.
func TestSessionsThatCannotBeAskedFor(t *testing.T) {
	g := startGate(t, func(_ *Options, s *Settings) { s.AsksSessions = false })
	g.away(t, "sensor_001", subscription.MaxFilters)
	more := subscribing("sensor_001", "more", 1, 99, 0)
	if g.Access(Subscribe, more) != Deny {
		t.Fatal("sessions that stay do not count")
	}
	for i := range g.sessions.later {
		g.sessions.later[i].due = time.Now()
	}
	if g.Access(Subscribe, more) != AllowCertified {
		t.Error(g.host.last())
	}
	if len(g.host.published) != 0 {
		t.Errorf("asked: %v", g.host.published)
	}
}

// TestWithoutTheCertificate: a client that uses a device's name without its certificate is bounded too, takes none of the
// device's room, and with the device's client id is refused and disconnected.
func TestWithoutTheCertificate(t *testing.T) {
	g := startGate(t, nil)
	for i := range 2 * subscription.MaxFilters {
		p := subscribing("sensor_001", "x", 1, i, i)
		p.Certified = false
		if d := g.Access(Subscribe, p); (d == Deny) != (i >= subscription.MaxFilters) {
			t.Errorf("subscription %d: %v", i, d)
		}
	}
	if g.Access(Subscribe, subscribing("sensor_001", "sensor_001", 2, 0, 0)) != AllowCertified {
		t.Errorf("the device is refused: %s", g.host.last())
	}
	for _, otherIssuer := range []bool{false, true} {
		p := subscribing("sensor_001", "sensor_001", 3, 0, 0)
		p.Certified, p.OtherIssuer = otherIssuer, otherIssuer
		for _, action := range []Action{Subscribe, Unsubscribe} {
			if g.Access(action, p) != Deny {
				t.Errorf("action %d is allowed", action)
			}
			if len(g.offenders.waiting) != 1 {
				t.Error("is not going to be disconnected")
			}
			clear(g.offenders.waiting)
		}
	}
}
