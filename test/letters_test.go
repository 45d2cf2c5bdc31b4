package test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
)

// TestDeadLettersAreBounded has a backend refuse all that one device sends. The device stops when its share of the dead
// letters is taken, and alone; nothing of it is lost, and when the letters are dropped it continues.
func TestDeadLettersAreBounded(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, HTTP: true,
		Settings: map[string]any{"dead_letters.max_bytes": "1MiB", "dead_letters.device_share": 0.1},
	})
	g.Watch()
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		if r.Device == "sensor_001" {
			return backend.Answer{Status: http.StatusUnprocessableEntity}
		}
		return backend.OK(r)
	})
	bad, good := g.Connect(g.Device("sensor_001"), harness.MQTT5), g.Connect(g.Device("sensor_002"), harness.MQTT311)
	const sent = 10
	large := `"` + strings.Repeat("x", 30000) + `"`
	for range sent {
		m := bad.Sign(large)
		if ack := g.Publish(bad, bad.DataTopic(), 1, m.Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
		g.Expect(bad.DataTopic(), m)
	}
	metric := func(line string) func() bool {
		return func() bool { return bytes.Contains(g.Ask("GET", "/metrics", "").Text, []byte("\n"+line+"\n")) }
	}
	g.Eventually("the device stops", metric("bouncer_blocked_devices 1"))
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: the device's messages wait: there is no room for its dead letter",
		"device=sensor_001", "bouncerctl dead", "device_share"))
	g.Must(err)
	g.Accept(good, 1, good.Sign("1"))
	if s := g.Ask("GET", "/healthz", ""); s.Status != 200 {
		t.Errorf("%+v", s) // one device's own trouble
	}
	if list := g.Bouncerctl(program, "dead", "list"); !strings.Contains(list, "Shown: 3 of 3 letters.") ||
		!strings.Contains(list, "of 1048576 bytes. The most of a device: sensor_001, ") {
		t.Errorf("%s", list)
	}
	for dropped := 0; dropped < sent; {
		before := g.Bouncerctl(program, "dead", "list", "--json")
		n := strings.Count(before, `"reason":"refused"`)
		if n == 0 {
			t.Fatal(before)
		}
		g.Bouncerctl(program, "dead", "drop", "--all", "--yes")
		dropped += n
		left := min(3, sent-dropped)
		g.Eventually("the device goes on", func() bool {
			return strings.Count(g.Bouncerctl(program, "dead", "list", "--json"), `"reason":"refused"`) == left
		})
	}
	g.Eventually("nothing is left", metric("bouncer_messages_pending 0"))
	if !metric("bouncer_messages_dead_total 10")() || !metric("bouncer_blocked_devices 0")() {
		t.Errorf("%s", g.Ask("GET", "/metrics", "").Text)
	}
}
