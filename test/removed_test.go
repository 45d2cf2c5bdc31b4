package test

import (
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestRemovedDevice takes a device out of the registry while it is connected: that gives it no rights that it had not.
func TestRemovedDevice(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	g.Watch()
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	g.Accept(c, 1, c.Sign("22"))
	store, err := registry.OpenStore(g.Broker.Path("devices.db"))
	g.Must(err)
	mark := g.Broker.Log().Mark()
	g.Must(store.Remove(g.Limit(), "sensor_001"))
	g.Must(store.Close())
	_, err = g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.Must(err)
	// It has been disconnected, and may come again.
	for _, c := range []*harness.Client{g.Connect(c.Device, harness.MQTT5), g.Connect(c.Device, harness.MQTT311)} {
		for _, sent := range []struct {
			topic, reason string
			m             device.Message
		}{
			{c.DataTopic(), "unknown_device", c.Sign("22")},
			{"site/status", "forbidden_topic", device.Message{Bytes: []byte("22")}},
		} {
			g.ExpectRefusal(sent.topic, sent.m, "of a removed device")
			mark := g.Broker.Log().Mark()
			if ack := g.Publish(c, sent.topic, 1, sent.m.Bytes); ack.Code != c.Protocol.Refusal(1) {
				g.Errorf("a removed device publishes to %s: %v", sent.topic, ack)
			}
			line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused "))
			g.Must(err)
			if harness.Fields(line)["reason"] != sent.reason {
				g.Errorf("a removed device publishes to %s, want the reason %s; the log says: %s", sent.topic, sent.reason, line)
			}
		}
		g.RefuseSubscription(c, "#")
		g.RefuseSubscription(c, c.ResponseTopic())
	}
	g.NothingElse("witness")
}

// TestRemovedStaysConfined removes devices while the broker runs and while it does not, with bouncerctl and with plain
// SQL, restarts it, and releases one.
func TestRemovedStaysConfined(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002", "sensor_003"}, Persistence: true})
	program := harness.BuildBouncerctl(t)
	mark := g.Broker.Log().Mark()
	g.Bouncerctl(program, "device", "remove", "sensor_001")
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.Must(err)
	expectConfined(g, "sensor_001", true)
	g.Must(g.Broker.Stop())
	g.Must(g.Broker.SQL("DELETE FROM devices WHERE device_id = 'sensor_002'"))
	g.Must(g.Broker.Start())
	for _, id := range []string{"sensor_001", "sensor_002", "sensor_003"} {
		expectConfined(g, id, true)
	}
	if out := g.Bouncerctl(program, "device", "release", "sensor_001"); out != "Released: 1 device id.\n" {
		t.Errorf("%q", out)
	}
	expectConfined(g, "sensor_001", false)
	if out := g.Bouncerctl(program, "device", "remove", "sensor_003", "--release"); !strings.Contains(out, "Released: 1 device id.") {
		t.Errorf("%q", out)
	}
	g.Must(g.Broker.Restart())
	expectConfined(g, "sensor_001", false)
	expectConfined(g, "sensor_002", true)
	expectConfined(g, "sensor_003", false)
}
