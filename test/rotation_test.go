package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestCommandsDuringRotation: commands are signed with the old secret until a message signed with the new one was
// accepted, over a SIGKILL too, and what waits for an answer is then sent again; a stolen secret signs nothing any more.
func TestCommandsDuringRotation(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "silent"}, HTTP: true})
	old := g.Device("sensor_001")
	rotate := func(d *device.Device, args ...string) *device.Device {
		t.Helper()
		out := filepath.Join(t.TempDir(), "rotated")
		g.Bouncerctl(program, append([]string{"device", "rotate", d.ID, "--out", out}, args...)...)
		secret, err := os.ReadFile(filepath.Join(out, "secret"))
		g.Must(err)
		renewed := *d
		renewed.Secret = secret
		return &renewed
	}
	c := g.Connect(old, harness.MQTT5)
	g.Must(c.Subscribe(g.Limit(), c.CommandTopic(), 1))
	command := func(d *device.Device) string {
		t.Helper()
		s := g.Ask("POST", "/v1/devices/"+d.ID+"/commands?ttl=10m", `"go"`)
		if s.Status != 202 {
			t.Fatalf("%s", s.Text)
		}
		return s.ID
	}
	// signedBy tells whether the device got the command signed with the secret of d, which is the last of its deliveries.
	signedBy := func(c *harness.Client, id string, d *device.Device) bool {
		by := false
		for _, r := range c.Inbox().On(c.CommandTopic()) {
			if e, err := new(envelope.Decoder).Decode(r.Payload); err == nil && string(e.MessageIDText) == id {
				by = envelope.NewVerifier(d.Secret).Verify(e)
			}
		}
		return by
	}
	comes := func(c *harness.Client, id string, d *device.Device) {
		t.Helper()
		g.Eventually("the command signed as wanted", func() bool { return signedBy(c, id, d) })
	}
	accepted := func(c *harness.Client, d *device.Device) {
		t.Helper()
		g.Eventually("a message of the new secret is accepted", func() bool {
			return g.Publish(c, c.DataTopic(), 1, d.Sign("1").Bytes).Accepted()
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
	g.Must(g.Broker.Process().Kill())
	g.Must(g.Broker.Start())
	c = g.Connect(old, harness.MQTT5)
	g.Must(c.Subscribe(g.Limit(), c.CommandTopic(), 1))
	comes(c, command(old), second)

	fourth := rotate(old, "--now")
	g.Eventually("the stolen secret is refused", func() bool {
		return !g.Publish(c, c.DataTopic(), 1, second.Sign("2").Bytes).Accepted()
	})
	last := command(old)
	comes(c, last, fourth)
	comes(c, first, fourth)
	for _, r := range c.Inbox().On(c.CommandTopic()) {
		var m struct {
			MessageID string `json:"message_id"`
		}
		g.Must(json.Unmarshal(r.Payload, &m))
		if e, err := new(envelope.Decoder).Decode(r.Payload); err == nil && m.MessageID == last && !envelope.NewVerifier(fourth.Secret).Verify(e) {
			t.Error("signed with a secret that was ended at once")
		}
	}
	_ = third

	// One that says nothing gets commands signed with the old secret until its end, and then with the new one.
	silent := g.Device("silent")
	s := g.Connect(silent, harness.MQTT311)
	g.Must(s.Subscribe(g.Limit(), s.CommandTopic(), 1))
	renewed := rotate(silent, "--grace", "4s")
	waits := command(silent)
	comes(s, waits, silent)
	comes(s, waits, renewed)
}
