package test

import (
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestTopicAlias publishes by alias, which the broker resolves before it asks.
func TestTopicAlias(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.Watch()
	one, two := g.Device("sensor_001"), g.Device("sensor_002")
	for qos := byte(0); qos <= 2; qos++ {
		c, _, err := one.ConnectRaw5(g.Limit())
		g.Must(err)
		g.Cleanup(func() { c.Conn.Close() })
		id := uint16(0)
		publish := func(topic string, alias uint16, message []byte) device.Ack {
			g.Helper()
			id++
			ack, err := c.Publish(g.Limit(), &packets5.Publish{
				Topic: topic, QoS: qos, PacketID: id, Payload: message, Properties: &packets5.Properties{TopicAlias: &alias},
			})
			g.Must(err)
			if qos == 2 && ack.Accepted() {
				_, err := c.Release(g.Limit(), id)
				g.Must(err)
			}
			return ack
		}
		refused := func(topic string, alias uint16, m device.Message, reason string) {
			g.Helper()
			g.ExpectRefusal(topic, m, "by alias")
			mark := g.Broker.Log().Mark()
			if ack := publish(topic, alias, m.Bytes); ack.Code != harness.MQTT5.Refusal(qos) {
				g.Errorf("QoS %d, %s: %v", qos, reason, ack)
			}
			line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused "))
			g.Must(err)
			if got := harness.Fields(line); got["reason"] != reason || topic == "" && got["topic"] == "" {
				g.Errorf("QoS %d, want the reason %s; the log says: %s", qos, reason, line)
			}
		}
		accepted := func(topic string, alias uint16) device.Message {
			g.Helper()
			m := one.Sign("22")
			g.Expect(one.DataTopic(), m)
			if ack := publish(topic, alias, m.Bytes); !ack.Accepted() {
				g.Errorf("QoS %d: a good message: %v", qos, ack)
			}
			g.Delivered(one.DataTopic(), m.Bytes)
			return m
		}
		unsigned := device.Message{Bytes: []byte(`{"temperature":22}`)}
		refused(one.DataTopic(), 1, unsigned, "malformed") // the alias stands all the same
		refused("", 1, unsigned, "malformed")
		m := accepted("", 1)
		refused("", 1, m, "replay")
		refused("site/status", 2, unsigned, "forbidden_topic")
		refused("", 2, one.Sign("22"), "forbidden_topic")
		refused(two.DataTopic(), 1, one.Sign("22"), "topic_mismatch")
		refused("", 1, two.Sign("22"), "topic_mismatch")
		accepted(one.DataTopic(), 1)
		accepted("", 1)
	}
	g.NothingElse("sensor_001")
}

// TestQoS2 has what QoS 2 allows between PUBLISH and PUBREL.
func TestQoS2(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.Watch()
	d, other := g.Device("sensor_001"), g.Device("sensor_002")
	bad := device.Message{Bytes: []byte(`{"temperature":22}`)}
	for _, p := range harness.BothProtocols {
		g.Sub(p.String(), func(g *harness.Gateway) {
			open := func(as *device.Device) *harness.Exchange { return g.Open(as, p, "persistent", false) }
			refused := func(c *harness.Exchange, id uint16, dup bool, m device.Message, reason string) {
				g.Helper()
				c.Refuse(d.DataTopic(), harness.Packet{QoS: 2, ID: id, Dup: dup, Message: m}, reason)
			}
			accepted := func(c *harness.Exchange, id uint16) device.Message {
				g.Helper()
				m := d.Sign("22")
				g.Expect(d.DataTopic(), m)
				if ack := c.Publish(d.DataTopic(), harness.Packet{QoS: 2, ID: id, Message: m}); ack.Code != device.Success {
					g.Errorf("a good message: PUBREC %v", ack)
				}
				return m
			}
			// What was refused is not there to be released.
			c := open(d)
			refused(c, 1, false, bad, "malformed")
			c.Release(1)
			// A repetition, or another message under its id, neither takes the place of what waits for its release, nor
			// keeps it back.
			m := accepted(c, 2)
			refused(c, 2, true, m, "replay")
			refused(c, 2, true, bad, "malformed")
			c.Release(2)
			g.Delivered(d.DataTopic(), m.Bytes)
			c.Release(2)
			// What was accepted reaches subscribers, even if another client takes the session over before the release.
			m = accepted(c, 3)
			c.Cut()
			c = open(d)
			c.Release(3)
			g.Delivered(d.DataTopic(), m.Bytes)
			m = accepted(c, 4)
			c = open(d)
			c.Release(4)
			g.Delivered(d.DataTopic(), m.Bytes)
			m = accepted(c, 4)
			c = open(other)
			c.Release(4)
			g.Delivered(d.DataTopic(), m.Bytes)
			refused(c, 4, false, m, "topic_mismatch")
			c.Release(4)
			g.Open(d, p, "persistent", true).Cut()
		})
	}
	g.NothingElse("sensor_002")
}
