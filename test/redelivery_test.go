package test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// An exchange is a connection of a device, packet by packet, over either version of MQTT.
type exchange struct {
	*gate
	device   *device.Device
	protocol protocol
	clientID string
	v5       *device.Raw5
	v3       *device.Raw3
}

// open connects with a client id, and a session that lasts or one that begins and ends with the connection. It is cut at
// the end of the (sub)test.
func (g *gate) open(d *device.Device, p protocol, clientID string, clean bool) *exchange {
	g.Helper()
	c := &exchange{gate: g, device: d, protocol: p, clientID: clientID}
	var err error
	switch p {
	case mqtt5:
		c.v5, _, err = d.ConnectRaw5(g.limit(), func(c *packets5.Connect) {
			c.ClientID, c.CleanStart = clientID, clean
			if !clean {
				c.Properties.SessionExpiryInterval = ptr[uint32](3600)
			}
		})
	default:
		c.v3, _, err = d.ConnectRaw3(g.limit(), func(c *packets3.ConnectPacket) { c.ClientIdentifier, c.CleanSession = clientID, clean })
	}
	g.no(err)
	g.Cleanup(func() { c.conn().Close() })
	return c
}

func (c *exchange) conn() net.Conn {
	if c.v5 != nil {
		return c.v5.Conn
	}
	return c.v3.Conn
}

// cut ends the connection as a network does.
func (c *exchange) cut() { c.no(c.conn().Close()) }

// packet is a PUBLISH.
type packet struct {
	qos byte
	id  uint16
	dup bool
	device.Message
}

// publish waits for the PUBACK or PUBREC.
func (c *exchange) publish(topic string, p packet) device.Ack {
	c.Helper()
	var ack device.Ack
	var err error
	if c.v5 != nil {
		ack, err = c.v5.Publish(c.limit(), &packets5.Publish{Topic: topic, QoS: p.qos, PacketID: p.id, Duplicate: p.dup, Payload: p.Bytes})
	} else {
		err = c.v3.Publish(c.limit(), topic, p.qos, p.id, p.dup, p.Bytes)
	}
	if err != nil {
		c.Fatalf("PUBLISH over %v: %v", c.protocol, err)
	}
	return ack
}

// send waits for nothing.
func (c *exchange) send(p packet) {
	c.Helper()
	if c.v5 != nil {
		c.no(c.v5.Send(c.limit(), &packets5.Publish{
			Topic: c.device.DataTopic(), QoS: p.qos, PacketID: p.id, Duplicate: p.dup, Payload: p.Bytes, Properties: &packets5.Properties{},
		}))
		return
	}
	m := packets3.NewControlPacket(packets3.Publish).(*packets3.PublishPacket)
	m.TopicName, m.Qos, m.MessageID, m.Dup, m.Payload = c.device.DataTopic(), p.qos, p.id, p.dup, p.Bytes
	c.no(c.v3.Send(c.limit(), m))
}

// release sends PUBREL and waits for the PUBCOMP, whatever it says.
func (c *exchange) release(id uint16) {
	c.Helper()
	var err error
	if c.v5 != nil {
		_, err = c.v5.Release(c.limit(), id)
	} else {
		err = c.v3.Release(c.limit(), id)
	}
	if err != nil {
		c.Fatalf("PUBREL over %v: %v", c.protocol, err)
	}
}

// succeed publishes a message that must be acknowledged as a success, and completes it.
func (c *exchange) succeed(p packet) {
	c.Helper()
	mark := c.broker.Log().Mark()
	ack := c.publish(c.device.DataTopic(), p)
	if ack.Code != device.Success && (p.qos != 1 || ack.Code != device.NoMatchingSubscribers) {
		c.Errorf("QoS %d over %v: %v, want success", p.qos, c.protocol, ack)
	}
	if p.qos == 2 {
		c.release(p.id)
	}
	if lines := c.broker.Log().Find(mark, broker.Contains("bouncer: refused ")); len(lines) > 0 {
		c.Errorf("QoS %d over %v is to succeed; the log says: %s", p.qos, c.protocol, lines)
	}
}

// refuse publishes a message that must be refused for a reason.
func (c *exchange) refuse(topic string, p packet, reason string) {
	c.Helper()
	c.refused = append(c.refused, delivery{p.Message, topic, reason})
	mark := c.broker.Log().Mark()
	if ack := c.publish(topic, p); ack.Code != c.protocol.refusal(p.qos) {
		c.Errorf("%s, QoS %d over %v: %v", reason, p.qos, c.protocol, ack)
	}
	if p.qos == 2 && c.protocol == mqtt311 {
		c.release(p.id) // MQTT 3.1.1 does not know that it was refused
	}
	line, err := c.broker.WaitLog(c.limit(), mark, broker.Contains("bouncer: refused "))
	c.no(err)
	if got := fields(line); got["reason"] != reason {
		c.Errorf("QoS %d over %v, want the reason %s; the log says: %s", p.qos, c.protocol, reason, line)
	}
}

// lose publishes a message that is accepted, and does not read the acknowledgement.
func (c *exchange) lose(p packet) {
	c.Helper()
	c.expect(c.device.DataTopic(), p.Message)
	c.send(p)
	c.posted(p.Message)
}

// have publishes a message that is accepted, to the end.
func (c *exchange) have(p packet) {
	c.Helper()
	c.expect(c.device.DataTopic(), p.Message)
	c.succeed(p)
	c.posted(p.Message)
}

// again connects with the same client id, after a cut or while the old connection is open.
func (c *exchange) again(clean, cut bool) *exchange {
	c.Helper()
	if cut {
		c.cut()
	}
	return c.open(c.device, c.protocol, c.clientID, clean)
}

// TestRedelivery loses acknowledgements with their connections. A device that sends the messages again is told success;
// a subscriber gets each once, and so does the backend.
func TestRedelivery(t *testing.T) {
	const window = 5
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	g.watch()
	d := g.device("sensor_001")
	for _, p := range bothProtocols {
		for qos := byte(1); qos <= 2; qos++ {
			for _, clean := range []bool{true, false} {
				for _, cut := range []bool{true, false} {
					name := fmt.Sprintf("%v QoS %d, clean %v, cut %v", p, qos, clean, cut)
					g.sub(name, func(g *gate) {
						var inFlight []packet
						for i := range window {
							inFlight = append(inFlight, packet{qos: qos, id: uint16(i + 1), Message: d.Sign("22")})
						}
						first := g.open(d, p, name, clean)
						for _, m := range inFlight {
							first.lose(m)
						}
						second := first.again(clean, cut)
						for i := range inFlight {
							inFlight[i].dup = true
							second.succeed(inFlight[i])
							g.delivered(d.DataTopic(), inFlight[i].Bytes)
						}
						// It has been told now. Once more on this connection is a replay, and nothing is released twice.
						m := inFlight[0]
						second.refuse(d.DataTopic(), m, "replay")
						m.id, m.dup = 100, false
						second.refuse(d.DataTopic(), m, "replay")
						if qos == 2 {
							second.release(1)
						}
						// The acknowledgement may be lost again, and of QoS 2 any of three: this connection does not know
						// that the message was complete, or that it was published at all.
						third := second.again(clean, cut)
						third.succeed(inFlight[0])
						m = inFlight[1]
						m.id, m.dup = 101, false
						third.succeed(m)
						third.refuse(d.DataTopic(), m, "replay")
						g.open(d, p, name, true).cut()
					})
				}
			}
		}
	}
	g.nothingElse("sensor_001")
}

// TestRedeliveryLosesPUBREL loses PUBREC, PUBREL or PUBCOMP of a session that lasts: what was released without a second
// PUBLISH reaches nobody again either.
func TestRedeliveryLosesPUBREL(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	g.watch()
	d := g.device("sensor_001")
	for _, p := range bothProtocols {
		g.sub(p.String(), func(g *gate) {
			// The PUBREC arrived: the device goes on with PUBREL.
			m := packet{qos: 2, id: 1, Message: d.Sign("22")}
			c := g.open(d, p, "persistent", false)
			c.lose(m)
			c = c.again(false, true)
			c.release(1)
			g.delivered(d.DataTopic(), m.Bytes)
			// The same where the session is taken over.
			taken := packet{qos: 2, id: 6, Message: d.Sign("22")}
			c.lose(taken)
			c = c.again(false, false)
			c.release(6)
			g.delivered(d.DataTopic(), taken.Bytes)
			// And begins anew, having forgotten where it was: on this connection, once, and on later ones.
			c.succeed(m)
			c.refuse(d.DataTopic(), m, "replay")
			c = c.again(false, true)
			m.dup = true
			c.succeed(m)
			c = c.again(false, false)
			m.dup, m.id = false, 2
			c.succeed(m)
			// The PUBLISH is repeated twice, each time on a new connection, before it is released.
			m = packet{qos: 2, id: 3, Message: d.Sign("22")}
			c.lose(m)
			m.dup = true
			c = c.again(false, true)
			if ack := c.publish(d.DataTopic(), m); !ack.Accepted() {
				g.Errorf("a redelivery: %v", ack)
			}
			c = c.again(false, true)
			c.succeed(m)
			g.delivered(d.DataTopic(), m.Bytes)
			// Under another packet id the broker does not know it for the same, and holds both.
			for _, first := range []uint16{4, 5} {
				m = packet{qos: 2, id: 4, Message: d.Sign("22")}
				c.lose(m)
				c = c.again(false, true)
				m.id = 5
				if ack := c.publish(d.DataTopic(), m); !ack.Accepted() {
					g.Errorf("a redelivery: %v", ack)
				}
				c.release(first)
				g.delivered(d.DataTopic(), m.Bytes)
				c.release(4)
				c.release(5)
			}
			g.open(d, p, "persistent", true).cut()
		})
	}
	g.nothingElse("sensor_001")
}

// TestNoRedelivery has repetitions that are none for the device's own connection: what differs from a redelivery in one
// respect is a replay.
func TestNoRedelivery(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	one, two := g.device("sensor_001"), g.device("sensor_002")
	for _, p := range bothProtocols {
		for qos := byte(1); qos <= 2; qos++ {
			g.sub(fmt.Sprintf("%v QoS %d", p, qos), func(g *gate) {
				m := packet{qos: qos, id: 1, Message: one.Sign(`{"temperature":22}`)}
				c := g.open(one, p, "client", false)
				c.have(m)
				g.delivered(one.DataTopic(), m.Bytes)
				m.dup = true
				c.refuse(one.DataTopic(), m, "replay") // the connection has not ended
				other := g.open(one, p, "other client", true)
				other.refuse(one.DataTopic(), m, "replay") // nor has this client id's
				other = other.again(true, true)
				other.refuse(one.DataTopic(), m, "replay")

				c = c.again(false, true)
				none := m
				none.qos, none.id, none.dup = 0, 0, false
				c.refuse(one.DataTopic(), none, "replay")
				tampered := m
				tampered.Message = m.Tampered(":22}", ":99}")
				c.refuse(one.DataTopic(), tampered, "replay") // the same id and MAC
				tampered.Message = m.Tampered(fmt.Sprint(m.Timestamp), fmt.Sprint(m.Timestamp+1))
				c.refuse(one.DataTopic(), tampered, "replay")
				resigned := m
				resigned.Message = one.Sign("99", device.WithMessageID(m.MessageID), device.SignedAt(time.Unix(m.Timestamp, 0)))
				c.refuse(one.DataTopic(), resigned, "replay") // the same id alone
				resigned.Message = m.Resigned(strings.Repeat("0", 64))
				c.refuse(one.DataTopic(), resigned, "replay")
				// Nor is another device's connection the device's, though it had the client id since.
				thief := g.open(two, p, "client", false)
				thief.refuse(one.DataTopic(), m, "topic_mismatch")
				thief.refuse(two.DataTopic(), m, "identity_mismatch")

				// None of them is in the way of the real one.
				c = g.open(one, p, "client", false)
				c.succeed(m)
				c.refuse(one.DataTopic(), m, "replay")
				g.open(one, p, "client", true).cut()
			})
		}
	}
	// At QoS 0 there is no acknowledgement to be lost.
	g.sub("accepted at QoS 0", func(g *gate) {
		m := packet{Message: one.Sign("22")}
		c := g.open(one, mqtt5, "QoS 0", true)
		c.lose(m)
		c = c.again(true, true)
		c.refuse(one.DataTopic(), m, "replay")
	})
	g.nothingElse("sensor_001")
}

// TestRedeliveryOfWhatIsRetained does not take the place of what was retained since.
func TestRedeliveryOfWhatIsRetained(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	g.watch()
	d := g.device("sensor_001")
	retained := func(c *exchange, m packet) device.Ack {
		g.Helper()
		ack, err := c.v5.Publish(g.limit(), &packets5.Publish{
			Topic: d.DataTopic(), QoS: m.qos, PacketID: m.id, Duplicate: m.dup, Retain: true, Payload: m.Bytes,
		})
		g.no(err)
		if m.qos == 2 {
			c.release(m.id)
		}
		return ack
	}
	for qos := byte(1); qos <= 2; qos++ {
		older, newer := packet{qos: qos, id: 1, Message: d.Sign("1")}, packet{qos: qos, id: 2, Message: d.Sign("2")}
		c := g.open(d, mqtt5, "client", false)
		for _, m := range []packet{older, newer} {
			g.expect(d.DataTopic(), m.Message)
			retained(c, m)
			g.delivered(d.DataTopic(), m.Bytes)
		}
		c = c.again(false, true)
		older.dup = true
		if ack := retained(c, older); !ack.Accepted() {
			g.Errorf("a redelivery, QoS %d: %v", qos, ack)
		}
		late := g.connect(g.device("dashboard"), mqtt5)
		g.no(late.Subscribe(g.limit(), d.DataTopic(), 2))
		got, err := late.Inbox().WaitCount(g.limit(), d.DataTopic(), 1)
		g.no(err)
		if !bytes.Equal(got[0].Payload, newer.Bytes) {
			g.Errorf("QoS %d: retained is %q, want %q", qos, got[0].Payload, newer.Bytes)
		}
	}
	g.nothingElse("sensor_001")
}

// TestSinkIsClosed looks for what was redelivered where the plugin has it routed to.
func TestSinkIsClosed(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"acl.others": "allow"}})
	g.watch()
	d := g.device("sensor_001")
	spy := g.connect(g.device("spy"), mqtt5)
	for _, filter := range []string{"$bouncer/#", "$bouncer/+"} {
		g.no(spy.Subscribe(g.limit(), filter, 2))
	}
	if err := spy.Subscribe(g.limit(), "$bouncer/redelivered", 2); err == nil {
		g.Error("a subscription to the sink was granted")
	}
	if ack := g.publish(spy, "$bouncer/redelivered", 1, []byte("hello")); ack.Code != device.NotAuthorized {
		g.Errorf("a publish to the sink: %v", ack)
	}
	for qos := byte(1); qos <= 2; qos++ {
		m := packet{qos: qos, id: 1, Message: d.Sign("22")}
		c := g.open(d, mqtt5, "client", true)
		c.have(m)
		c.again(true, true).succeed(m)
	}
	g.publish(spy, "site/last", 1, nil)
	g.no(spy.Subscribe(g.limit(), "site/last", 1))
	g.publish(spy, "site/last", 1, []byte("last"))
	_, err := spy.Inbox().WaitCount(g.limit(), "site/last", 1)
	g.no(err)
	if all := spy.Inbox().All(); len(all) != 1 {
		g.Errorf("a subscriber to the sink got %+v", all)
	}
	g.nothingElse("sensor_001")
}

// TestRedeliveryUnderAUserName has devices move to a listener that gives them their user name for a client id. What was
// accepted under their old client ids before the broker was started again is known under the new one.
func TestRedeliveryUnderAUserName(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, Listeners: []string{
		"cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username true\nuse_username_as_clientid true",
	}})
	d := g.device("sensor_001")
	moved := *d
	moved.Addr = g.broker.Address(1)
	for _, p := range bothProtocols {
		for qos := byte(1); qos <= 2; qos++ {
			m := packet{qos: qos, id: 1, Message: d.Sign("22")}
			c := g.open(d, p, "old id", true)
			c.have(m)
			c.cut()
			g.open(&moved, p, "old id", true).refuse(d.DataTopic(), m, "replay") // another client id, as long as the broker runs
			g.no(g.broker.Restart())
			c = g.open(&moved, p, "old id", true)
			m.dup = true
			c.refuse("device/sensor_001/data", packet{qos: 3 - qos, id: 2, Message: m.Message}, "replay")
			c.succeed(m)
			c.refuse(d.DataTopic(), m, "replay")
			c.again(true, true).succeed(m)
		}
	}
	if n := g.backend.Count(); n != 4 {
		t.Errorf("the backend got %d messages, want 4", n)
	}
}
