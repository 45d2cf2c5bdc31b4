package test

import (
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestRemovedDevice takes a device out of the registry while it is connected: that gives it no rights that it had not.
func TestRemovedDevice(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	g.watch()
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.accept(c, 1, c.Sign("22"))
	store, err := registry.OpenStore(g.broker.Path("devices.db"))
	g.no(err)
	mark := g.broker.Log().Mark()
	g.no(store.Remove(g.limit(), "sensor_001"))
	g.no(store.Close())
	_, err = g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.no(err)
	// It has been disconnected, and may come again.
	for _, c := range []*client{g.connect(c.Device, mqtt5), g.connect(c.Device, mqtt311)} {
		for _, sent := range []struct {
			topic, reason string
			m             device.Message
		}{
			{c.DataTopic(), "unknown_device", c.Sign("22")},
			{"site/status", "forbidden_topic", device.Message{Bytes: []byte("22")}},
		} {
			g.refused = append(g.refused, delivery{sent.m, sent.topic, "of a removed device"})
			mark := g.broker.Log().Mark()
			if ack := g.publish(c, sent.topic, 1, sent.m.Bytes); ack.Code != c.protocol.refusal(1) {
				g.Errorf("a removed device publishes to %s: %v", sent.topic, ack)
			}
			line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
			g.no(err)
			if fields(line)["reason"] != sent.reason {
				g.Errorf("a removed device publishes to %s, want the reason %s; the log says: %s", sent.topic, sent.reason, line)
			}
		}
		g.refuseSubscription(c, "#")
		g.refuseSubscription(c, c.ResponseTopic())
	}
	g.nothingElse("witness")
}

// TestRemovedStaysConfined removes devices while the broker runs and while it does not, with bouncerctl and with plain
// SQL, restarts it, and releases one.
func TestRemovedStaysConfined(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002", "sensor_003"}, Persistence: true})
	program := buildCtl(t)
	mark := g.broker.Log().Mark()
	g.ctl(program, "device", "remove", "sensor_001")
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.no(err)
	g.expectConfined("sensor_001", true)
	g.no(g.broker.Stop())
	g.no(g.broker.SQL("DELETE FROM devices WHERE device_id = 'sensor_002'"))
	g.no(g.broker.Start())
	for _, id := range []string{"sensor_001", "sensor_002", "sensor_003"} {
		g.expectConfined(id, true)
	}
	if out := g.ctl(program, "device", "release", "sensor_001"); out != "Released: 1 device id.\n" {
		t.Errorf("%q", out)
	}
	g.expectConfined("sensor_001", false)
	if out := g.ctl(program, "device", "remove", "sensor_003", "--release"); !strings.Contains(out, "Released: 1 device id.") {
		t.Errorf("%q", out)
	}
	g.no(g.broker.Restart())
	g.expectConfined("sensor_001", false)
	g.expectConfined("sensor_002", true)
	g.expectConfined("sensor_003", false)
}
