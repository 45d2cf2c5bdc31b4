package test

import (
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestTopicAlias publishes by alias, which the broker resolves before it asks.
func TestTopicAlias(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	one, two := g.device("sensor_001"), g.device("sensor_002")
	for qos := byte(0); qos <= 2; qos++ {
		c, _, err := one.ConnectRaw5(g.limit())
		g.no(err)
		g.Cleanup(func() { c.Conn.Close() })
		id := uint16(0)
		publish := func(topic string, alias uint16, message []byte) device.Ack {
			g.Helper()
			id++
			ack, err := c.Publish(g.limit(), &packets5.Publish{
				Topic: topic, QoS: qos, PacketID: id, Payload: message, Properties: &packets5.Properties{TopicAlias: &alias},
			})
			g.no(err)
			if qos == 2 && ack.Accepted() {
				_, err := c.Release(g.limit(), id)
				g.no(err)
			}
			return ack
		}
		refused := func(topic string, alias uint16, m device.Message, reason string) {
			g.Helper()
			g.refused = append(g.refused, delivery{m, topic, "by alias"})
			mark := g.broker.Log().Mark()
			if ack := publish(topic, alias, m.Bytes); ack.Code != mqtt5.refusal(qos) {
				g.Errorf("QoS %d, %s: %v", qos, reason, ack)
			}
			line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
			g.no(err)
			if got := fields(line); got["reason"] != reason || topic == "" && got["topic"] == "" {
				g.Errorf("QoS %d, want the reason %s; the log says: %s", qos, reason, line)
			}
		}
		accepted := func(topic string, alias uint16) device.Message {
			g.Helper()
			m := one.Sign("22")
			g.expect(one.DataTopic(), m)
			if ack := publish(topic, alias, m.Bytes); !ack.Accepted() {
				g.Errorf("QoS %d: a good message: %v", qos, ack)
			}
			g.delivered(one.DataTopic(), m.Bytes)
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
	g.nothingElse("sensor_001")
}

// TestQoS2 has what QoS 2 allows between PUBLISH and PUBREL.
func TestQoS2(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	d, other := g.device("sensor_001"), g.device("sensor_002")
	bad := device.Message{Bytes: []byte(`{"temperature":22}`)}
	for _, p := range bothProtocols {
		g.sub(p.String(), func(g *gate) {
			open := func(as *device.Device) *exchange { return g.open(as, p, "persistent", false) }
			refused := func(c *exchange, id uint16, dup bool, m device.Message, reason string) {
				g.Helper()
				c.refuse(d.DataTopic(), packet{qos: 2, id: id, dup: dup, Message: m}, reason)
			}
			accepted := func(c *exchange, id uint16) device.Message {
				g.Helper()
				m := d.Sign("22")
				g.expect(d.DataTopic(), m)
				if ack := c.publish(d.DataTopic(), packet{qos: 2, id: id, Message: m}); ack.Code != device.Success {
					g.Errorf("a good message: PUBREC %v", ack)
				}
				return m
			}
			// What was refused is not there to be released.
			c := open(d)
			refused(c, 1, false, bad, "malformed")
			c.release(1)
			// A repetition, or another message under its id, neither takes the place of what waits for its release, nor
			// keeps it back.
			m := accepted(c, 2)
			refused(c, 2, true, m, "replay")
			refused(c, 2, true, bad, "malformed")
			c.release(2)
			g.delivered(d.DataTopic(), m.Bytes)
			c.release(2)
			// What was accepted reaches subscribers, whoever takes the session over before the release.
			m = accepted(c, 3)
			c.cut()
			c = open(d)
			c.release(3)
			g.delivered(d.DataTopic(), m.Bytes)
			m = accepted(c, 4)
			c = open(d)
			c.release(4)
			g.delivered(d.DataTopic(), m.Bytes)
			m = accepted(c, 4)
			c = open(other)
			c.release(4)
			g.delivered(d.DataTopic(), m.Bytes)
			refused(c, 4, false, m, "topic_mismatch")
			c.release(4)
			g.open(d, p, "persistent", true).cut()
		})
	}
	g.nothingElse("sensor_002")
}
