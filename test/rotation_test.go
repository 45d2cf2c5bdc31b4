package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestCommandsDuringRotation: commands are signed with the old secret until a message signed with the new one was
// accepted, over a SIGKILL too, and what waits for an answer is then sent again; a stolen secret signs nothing any more.
func TestCommandsDuringRotation(t *testing.T) {
	program := buildCtl(t)
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "silent"}, HTTP: true})
	old := g.device("sensor_001")
	rotate := func(d *device.Device, args ...string) *device.Device {
		t.Helper()
		out := filepath.Join(t.TempDir(), "rotated")
		g.ctl(program, append([]string{"device", "rotate", d.ID, "--out", out}, args...)...)
		secret, err := os.ReadFile(filepath.Join(out, "secret"))
		g.no(err)
		renewed := *d
		renewed.Secret = secret
		return &renewed
	}
	c := g.connect(old, mqtt5)
	g.no(c.Subscribe(g.limit(), c.CommandTopic(), 1))
	command := func(d *device.Device) string {
		t.Helper()
		s := g.ask("POST", "/v1/devices/"+d.ID+"/commands?ttl=10m", `"go"`)
		if s.Status != 202 {
			t.Fatalf("%s", s.Text)
		}
		return s.ID
	}
	// signedBy tells whether the device got the command signed with the secret of d, which is the last of its deliveries.
	signedBy := func(c *client, id string, d *device.Device) bool {
		by := false
		for _, r := range c.Inbox().On(c.CommandTopic()) {
			if e, err := new(envelope.Decoder).Decode(r.Payload); err == nil && string(e.MessageIDText) == id {
				by = e.SignedBy(envelope.NewKey(d.Secret))
			}
		}
		return by
	}
	comes := func(c *client, id string, d *device.Device) {
		t.Helper()
		g.eventually("the command signed as wanted", func() bool { return signedBy(c, id, d) })
	}
	accepted := func(c *client, d *device.Device) {
		t.Helper()
		g.eventually("a message of the new secret is accepted", func() bool {
			return g.publish(c, c.DataTopic(), 1, d.Sign("1").Bytes).Accepted()
		})
	}

	second := rotate(old)
	first := command(old)
	comes(c, first, old)
	accepted(c, old) // which tells nothing new
	comes(c, command(old), old)
	accepted(c, second)
	comes(c, first, second) // again, with the secret that the device has
	comes(c, command(old), second)

	third := rotate(old)
	comes(c, command(old), second) // not the oldest, and not the one that is not known to be there
	g.no(g.broker.Process().Kill())
	g.no(g.broker.Start())
	c = g.connect(old, mqtt5)
	g.no(c.Subscribe(g.limit(), c.CommandTopic(), 1))
	comes(c, command(old), second)

	fourth := rotate(old, "--now")
	g.eventually("the stolen secret is refused", func() bool {
		return !g.publish(c, c.DataTopic(), 1, second.Sign("2").Bytes).Accepted()
	})
	last := command(old)
	comes(c, last, fourth)
	comes(c, first, fourth)
	for _, r := range c.Inbox().On(c.CommandTopic()) {
		var m struct {
			MessageID string `json:"message_id"`
		}
		g.no(json.Unmarshal(r.Payload, &m))
		if e, err := new(envelope.Decoder).Decode(r.Payload); err == nil && m.MessageID == last && !e.SignedBy(envelope.NewKey(fourth.Secret)) {
			t.Error("signed with a secret that was ended at once")
		}
	}
	_ = third

	// One that says nothing gets commands signed with the old secret until its end, and then with the new one.
	silent := g.device("silent")
	s := g.connect(silent, mqtt311)
	g.no(s.Subscribe(g.limit(), s.CommandTopic(), 1))
	renewed := rotate(silent, "--grace", "4s")
	waits := command(silent)
	comes(s, waits, silent)
	comes(s, waits, renewed)
}
