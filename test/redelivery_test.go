package test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestRedelivery loses acknowledgements with their connections. A device that sends the messages again is told success;
// a subscriber gets each once, and so does the backend.
func TestRedelivery(t *testing.T) {
	const window = 5
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	g.Watch()
	d := g.Device("sensor_001")
	for _, p := range harness.BothProtocols {
		for qos := byte(1); qos <= 2; qos++ {
			for _, clean := range []bool{true, false} {
				for _, cut := range []bool{true, false} {
					name := fmt.Sprintf("%v QoS %d, clean %v, cut %v", p, qos, clean, cut)
					g.Sub(name, func(g *harness.Gateway) {
						var inFlight []harness.Packet
						for i := range window {
							inFlight = append(inFlight, harness.Packet{QoS: qos, ID: uint16(i + 1), Message: d.Sign("22")})
						}
						first := g.Open(d, p, name, clean)
						for _, m := range inFlight {
							first.Lose(m)
						}
						second := first.Again(clean, cut)
						for i := range inFlight {
							inFlight[i].Dup = true
							second.Succeed(inFlight[i])
							g.Delivered(d.DataTopic(), inFlight[i].Bytes)
						}
						// It has been told now. Again on this connection is a replay, and nothing is released twice.
						m := inFlight[0]
						second.Refuse(d.DataTopic(), m, "replay")
						m.ID, m.Dup = 100, false
						second.Refuse(d.DataTopic(), m, "replay")
						if qos == 2 {
							second.Release(1)
						}
						// The acknowledgement may be lost again, and of QoS 2 any of three: this connection does not know
						// that the message was complete, or that it was published at all.
						third := second.Again(clean, cut)
						third.Succeed(inFlight[0])
						m = inFlight[1]
						m.ID, m.Dup = 101, false
						third.Succeed(m)
						third.Refuse(d.DataTopic(), m, "replay")
						g.Open(d, p, name, true).Cut()
					})
				}
			}
		}
	}
	g.NothingElse("sensor_001")
}

// TestRedeliveryLosesPUBREL loses PUBREC, PUBREL or PUBCOMP of a session that lasts: what was released without a second
// PUBLISH does not reach subscribers again either.
func TestRedeliveryLosesPUBREL(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	g.Watch()
	d := g.Device("sensor_001")
	for _, p := range harness.BothProtocols {
		g.Sub(p.String(), func(g *harness.Gateway) {
			// The PUBREC arrived: the device continues with PUBREL.
			m := harness.Packet{QoS: 2, ID: 1, Message: d.Sign("22")}
			c := g.Open(d, p, "persistent", false)
			c.Lose(m)
			c = c.Again(false, true)
			c.Release(1)
			g.Delivered(d.DataTopic(), m.Bytes)
			// The same where the session is taken over.
			taken := harness.Packet{QoS: 2, ID: 6, Message: d.Sign("22")}
			c.Lose(taken)
			c = c.Again(false, false)
			c.Release(6)
			g.Delivered(d.DataTopic(), taken.Bytes)
			// And begins again, having forgotten where it was: on this connection, once, and on later ones.
			c.Succeed(m)
			c.Refuse(d.DataTopic(), m, "replay")
			c = c.Again(false, true)
			m.Dup = true
			c.Succeed(m)
			c = c.Again(false, false)
			m.Dup, m.ID = false, 2
			c.Succeed(m)
			// The PUBLISH is repeated twice, each time on a new connection, before it is released.
			m = harness.Packet{QoS: 2, ID: 3, Message: d.Sign("22")}
			c.Lose(m)
			m.Dup = true
			c = c.Again(false, true)
			if ack := c.Publish(d.DataTopic(), m); !ack.Accepted() {
				g.Errorf("a redelivery: %v", ack)
			}
			c = c.Again(false, true)
			c.Succeed(m)
			g.Delivered(d.DataTopic(), m.Bytes)
			// Under another packet id the broker does not know it for the same, and holds both.
			for _, first := range []uint16{4, 5} {
				m = harness.Packet{QoS: 2, ID: 4, Message: d.Sign("22")}
				c.Lose(m)
				c = c.Again(false, true)
				m.ID = 5
				if ack := c.Publish(d.DataTopic(), m); !ack.Accepted() {
					g.Errorf("a redelivery: %v", ack)
				}
				c.Release(first)
				g.Delivered(d.DataTopic(), m.Bytes)
				c.Release(4)
				c.Release(5)
			}
			g.Open(d, p, "persistent", true).Cut()
		})
	}
	g.NothingElse("sensor_001")
}

// TestNoRedelivery has repetitions that are none for the device's own connection: what differs from a redelivery in one
// respect is a replay.
func TestNoRedelivery(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.Watch()
	one, two := g.Device("sensor_001"), g.Device("sensor_002")
	for _, p := range harness.BothProtocols {
		for qos := byte(1); qos <= 2; qos++ {
			g.Sub(fmt.Sprintf("%v QoS %d", p, qos), func(g *harness.Gateway) {
				m := harness.Packet{QoS: qos, ID: 1, Message: one.Sign(`{"temperature":22}`)}
				c := g.Open(one, p, "client", false)
				c.Have(m)
				g.Delivered(one.DataTopic(), m.Bytes)
				m.Dup = true
				c.Refuse(one.DataTopic(), m, "replay") // the connection has not ended
				other := g.Open(one, p, "other client", true)
				other.Refuse(one.DataTopic(), m, "replay") // nor has this client id's
				other = other.Again(true, true)
				other.Refuse(one.DataTopic(), m, "replay")

				c = c.Again(false, true)
				none := m
				none.QoS, none.ID, none.Dup = 0, 0, false
				c.Refuse(one.DataTopic(), none, "replay")
				tampered := m
				tampered.Message = m.Tampered(":22}", ":99}")
				c.Refuse(one.DataTopic(), tampered, "replay") // the same id and MAC
				tampered.Message = m.Tampered(fmt.Sprint(m.Timestamp), fmt.Sprint(m.Timestamp+1))
				c.Refuse(one.DataTopic(), tampered, "replay")
				resigned := m
				resigned.Message = one.Sign("99", device.WithMessageID(m.MessageID), device.SignedAt(time.Unix(m.Timestamp, 0)))
				c.Refuse(one.DataTopic(), resigned, "replay") // the same id alone
				resigned.Message = m.Resigned(strings.Repeat("0", 64))
				c.Refuse(one.DataTopic(), resigned, "replay")
				// Nor is another device's connection the device's, though it had the client id since.
				thief := g.Open(two, p, "client", false)
				thief.Refuse(one.DataTopic(), m, "topic_mismatch")
				thief.Refuse(two.DataTopic(), m, "identity_mismatch")

				// None of them is in the way of the real one.
				c = g.Open(one, p, "client", false)
				c.Succeed(m)
				c.Refuse(one.DataTopic(), m, "replay")
				g.Open(one, p, "client", true).Cut()
			})
		}
	}
	// At QoS 0 there is no acknowledgement to be lost.
	g.Sub("accepted at QoS 0", func(g *harness.Gateway) {
		m := harness.Packet{Message: one.Sign("22")}
		c := g.Open(one, harness.MQTT5, "QoS 0", true)
		c.Lose(m)
		c = c.Again(true, true)
		c.Refuse(one.DataTopic(), m, "replay")
	})
	g.NothingElse("sensor_001")
}

// TestRedeliveryOfWhatIsRetained does not take the place of what was retained since.
func TestRedeliveryOfWhatIsRetained(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	g.Watch()
	d := g.Device("sensor_001")
	retained := func(c *harness.Exchange, m harness.Packet) device.Ack {
		g.Helper()
		ack, err := c.V5.Publish(g.Limit(), &packets5.Publish{
			Topic: d.DataTopic(), QoS: m.QoS, PacketID: m.ID, Duplicate: m.Dup, Retain: true, Payload: m.Bytes,
		})
		g.Must(err)
		if m.QoS == 2 {
			c.Release(m.ID)
		}
		return ack
	}
	for qos := byte(1); qos <= 2; qos++ {
		older, newer := harness.Packet{QoS: qos, ID: 1, Message: d.Sign("1")}, harness.Packet{QoS: qos, ID: 2, Message: d.Sign("2")}
		c := g.Open(d, harness.MQTT5, "client", false)
		for _, m := range []harness.Packet{older, newer} {
			g.Expect(d.DataTopic(), m.Message)
			retained(c, m)
			g.Delivered(d.DataTopic(), m.Bytes)
		}
		c = c.Again(false, true)
		older.Dup = true
		if ack := retained(c, older); !ack.Accepted() {
			g.Errorf("a redelivery, QoS %d: %v", qos, ack)
		}
		late := g.Connect(g.Device("dashboard"), harness.MQTT5)
		g.Must(late.Subscribe(g.Limit(), d.DataTopic(), 2))
		got, err := late.Inbox().WaitCount(g.Limit(), d.DataTopic(), 1)
		g.Must(err)
		if !bytes.Equal(got[0].Payload, newer.Bytes) {
			g.Errorf("QoS %d: retained is %q, want %q", qos, got[0].Payload, newer.Bytes)
		}
	}
	g.NothingElse("sensor_001")
}

// TestSinkIsClosed looks for what was redelivered where the plugin has it routed to.
func TestSinkIsClosed(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"acl.others": "allow"}})
	g.Watch()
	d := g.Device("sensor_001")
	spy := g.Connect(g.Device("spy"), harness.MQTT5)
	for _, filter := range []string{"$bouncer/#", "$bouncer/+"} {
		g.Must(spy.Subscribe(g.Limit(), filter, 2))
	}
	if err := spy.Subscribe(g.Limit(), "$bouncer/redelivered", 2); err == nil {
		g.Error("a subscription to the sink was granted")
	}
	if ack := g.Publish(spy, "$bouncer/redelivered", 1, []byte("hello")); ack.Code != device.NotAuthorized {
		g.Errorf("a publish to the sink: %v", ack)
	}
	for qos := byte(1); qos <= 2; qos++ {
		m := harness.Packet{QoS: qos, ID: 1, Message: d.Sign("22")}
		c := g.Open(d, harness.MQTT5, "client", true)
		c.Have(m)
		c.Again(true, true).Succeed(m)
	}
	g.Publish(spy, "site/last", 1, nil)
	g.Must(spy.Subscribe(g.Limit(), "site/last", 1))
	g.Publish(spy, "site/last", 1, []byte("last"))
	_, err := spy.Inbox().WaitCount(g.Limit(), "site/last", 1)
	g.Must(err)
	if all := spy.Inbox().All(); len(all) != 1 {
		g.Errorf("a subscriber to the sink got %+v", all)
	}
	g.NothingElse("sensor_001")
}

// TestRedeliveryUnderAUserName has devices move to a listener that gives them their user name for a client id. What was
// accepted under their old client ids before the broker was started again is known under the new one.
func TestRedeliveryUnderAUserName(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Listeners: []string{
		"cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username true\nuse_username_as_clientid true",
	}})
	d := g.Device("sensor_001")
	moved := *d
	moved.Addr = g.Broker.Address(1)
	for _, p := range harness.BothProtocols {
		for qos := byte(1); qos <= 2; qos++ {
			m := harness.Packet{QoS: qos, ID: 1, Message: d.Sign("22")}
			c := g.Open(d, p, "old id", true)
			c.Have(m)
			c.Cut()
			g.Open(&moved, p, "old id", true).Refuse(d.DataTopic(), m, "replay") // another client id, as long as the broker runs
			g.Must(g.Broker.Restart())
			c = g.Open(&moved, p, "old id", true)
			m.Dup = true
			c.Refuse("device/sensor_001/data", harness.Packet{QoS: 3 - qos, ID: 2, Message: m.Message}, "replay")
			c.Succeed(m)
			c.Refuse(d.DataTopic(), m, "replay")
			c.Again(true, true).Succeed(m)
		}
	}
	if n := g.Backend.Count(); n != 4 {
		t.Errorf("the backend got %d messages, want 4", n)
	}
}
