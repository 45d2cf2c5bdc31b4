package gate

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/subscription"
)

// TestNotices: which clients get a notice of a refusal.
func TestNotices(t *testing.T) {
	g := startGate(t, func(o *Options, _ *Settings) {
		o.Topics = NewTopics(TopicConfig{Gated: []string{"device/+/data"}, Response: "device/+/response", Rejected: "device/+/rejected"})
	})
	notice := func(p *Publish) string {
		t.Helper()
		g.host.published = nil
		if d := g.devices.of(g.registry.Lookup(p.Identity)); d != nil {
			d.noticed = time.Time{}
		}
		if g.send(p) != Refuse {
			t.Fatal("accepted")
		}
		if len(g.host.published) == 0 {
			return ""
		}
		n := g.host.published[0]
		payload, _, _ := strings.Cut(string(n.Payload), `,"server_time"`)
		return n.Topic + " " + payload
	}
	stale := func() *Publish {
		return publish("sensor_001", sign(t, "s", "sensor_001", time.Now().Add(-time.Hour).Unix(), "550E8400-e29b-41d4-a716-446655440000", `1`))
	}
	if got := notice(stale()); got != `device/sensor_001/rejected {"message_id":"550E8400-e29b-41d4-a716-446655440000","reason":"stale"` {
		t.Error(got)
	}
	forged := publish("sensor_001", sign(t, "x", "sensor_001", time.Now().Unix(), uuid.NewString(), `1`))
	if got := notice(forged); !strings.Contains(got, `"reason":"bad_signature"`) {
		t.Error(got)
	}
	// On another device's topic: the publisher gets the notice, and not the other device.
	q := by(g.fresh("sensor_001"), "sensor_002", "")
	if got := notice(q); got != `device/sensor_002/rejected {"message_id":null,"reason":"topic_mismatch"` {
		t.Error(got)
	}
	// Without the certificate no client does: not even on the device's own topic.
	bare := stale()
	bare.Certified = false
	if got := notice(bare); got != "" {
		t.Error(got)
	}
	if got := notice(by(g.fresh("sensor_001"), "stranger", "")); got != "" {
		t.Error(got)
	}
	// For a last will there is no client any more.
	will := stale()
	will.Connection = 7
	g.tick()
	g.Disconnected(&Publish{Connection: 7, Identity: []byte("sensor_001"), ClientID: []byte("sensor_001")}, subscription.MayStay)
	if got := notice(will); got != "" {
		t.Error(got)
	}
	// Once a second.
	g.host.published = nil
	for range 5 {
		g.send(stale())
	}
	if n := len(g.host.published); n != 1 {
		t.Errorf("%d notices at once", n)
	}
	if n := g.figures.notices.Load(); n != 4 {
		t.Errorf("%d counted", n)
	}
}
