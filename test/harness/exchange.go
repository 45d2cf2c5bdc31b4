package harness

import (
	"net"

	packets5 "github.com/eclipse/paho.golang/packets"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// An Exchange is a connection of a device, packet by packet, over either version of MQTT.
type Exchange struct {
	*Gateway
	Device   *device.Device
	Protocol Protocol
	ClientID string
	V5       *device.Raw5
	V3       *device.Raw3
}

// Open connects with a client id, and a session that lasts or one that begins and ends with the connection. It is cut at
// the end of the (sub)test.
func (g *Gateway) Open(d *device.Device, p Protocol, clientID string, clean bool) *Exchange {
	g.Helper()
	c := &Exchange{Gateway: g, Device: d, Protocol: p, ClientID: clientID}
	var err error
	switch p {
	case MQTT5:
		c.V5, _, err = d.ConnectRaw5(g.Limit(), func(c *packets5.Connect) {
			c.ClientID, c.CleanStart = clientID, clean
			if !clean {
				c.Properties.SessionExpiryInterval = new(uint32(3600))
			}
		})
	default:
		c.V3, _, err = d.ConnectRaw3(g.Limit(), func(c *packets3.ConnectPacket) { c.ClientIdentifier, c.CleanSession = clientID, clean })
	}
	g.Must(err)
	g.Cleanup(func() { c.conn().Close() })
	return c
}

func (c *Exchange) conn() net.Conn {
	if c.V5 != nil {
		return c.V5.Conn
	}
	return c.V3.Conn
}

// Cut ends the connection as a network does.
func (c *Exchange) Cut() { c.Must(c.conn().Close()) }

// A Packet is a PUBLISH.
type Packet struct {
	QoS byte
	ID  uint16
	Dup bool
	device.Message
}

// Publish waits for the PUBACK or PUBREC.
func (c *Exchange) Publish(topic string, p Packet) device.Ack {
	c.Helper()
	var ack device.Ack
	var err error
	if c.V5 != nil {
		ack, err = c.V5.Publish(c.Limit(), &packets5.Publish{Topic: topic, QoS: p.QoS, PacketID: p.ID, Duplicate: p.Dup, Payload: p.Bytes})
	} else {
		err = c.V3.Publish(c.Limit(), topic, p.QoS, p.ID, p.Dup, p.Bytes)
	}
	if err != nil {
		c.Fatalf("PUBLISH over %v: %v", c.Protocol, err)
	}
	return ack
}

// send waits for nothing.
func (c *Exchange) send(p Packet) {
	c.Helper()
	if c.V5 != nil {
		c.Must(c.V5.Send(c.Limit(), &packets5.Publish{
			Topic: c.Device.DataTopic(), QoS: p.QoS, PacketID: p.ID, Duplicate: p.Dup, Payload: p.Bytes, Properties: &packets5.Properties{},
		}))
		return
	}
	m := packets3.NewControlPacket(packets3.Publish).(*packets3.PublishPacket)
	m.TopicName, m.Qos, m.MessageID, m.Dup, m.Payload = c.Device.DataTopic(), p.QoS, p.ID, p.Dup, p.Bytes
	c.Must(c.V3.Send(c.Limit(), m))
}

// Release sends PUBREL and waits for the PUBCOMP, whatever it says.
func (c *Exchange) Release(id uint16) {
	c.Helper()
	var err error
	if c.V5 != nil {
		_, err = c.V5.Release(c.Limit(), id)
	} else {
		err = c.V3.Release(c.Limit(), id)
	}
	if err != nil {
		c.Fatalf("PUBREL over %v: %v", c.Protocol, err)
	}
}

// Succeed publishes a message that must be acknowledged as a success, and completes it.
func (c *Exchange) Succeed(p Packet) {
	c.Helper()
	mark := c.Broker.Log().Mark()
	ack := c.Publish(c.Device.DataTopic(), p)
	if ack.Code != device.Success && (p.QoS != 1 || ack.Code != device.NoMatchingSubscribers) {
		c.Errorf("QoS %d over %v: %v, want success", p.QoS, c.Protocol, ack)
	}
	if p.QoS == 2 {
		c.Release(p.ID)
	}
	if lines := c.Broker.Log().Find(mark, broker.Contains("bouncer: refused ")); len(lines) > 0 {
		c.Errorf("QoS %d over %v is to succeed; the log says: %s", p.QoS, c.Protocol, lines)
	}
}

// Refuse publishes a message that must be refused for a reason.
func (c *Exchange) Refuse(topic string, p Packet, reason string) {
	c.Helper()
	c.ExpectRefusal(topic, p.Message, reason)
	mark := c.Broker.Log().Mark()
	if ack := c.Publish(topic, p); ack.Code != c.Protocol.Refusal(p.QoS) {
		c.Errorf("%s, QoS %d over %v: %v", reason, p.QoS, c.Protocol, ack)
	}
	if p.QoS == 2 && c.Protocol == MQTT311 {
		c.Release(p.ID) // MQTT 3.1.1 does not know that it was refused
	}
	line, err := c.Broker.WaitLog(c.Limit(), mark, broker.Contains("bouncer: refused "))
	c.Must(err)
	if got := Fields(line); got["reason"] != reason {
		c.Errorf("QoS %d over %v, want the reason %s; the log says: %s", p.QoS, c.Protocol, reason, line)
	}
}

// Lose publishes a message that is accepted, and does not read the acknowledgement.
func (c *Exchange) Lose(p Packet) {
	c.Helper()
	c.Expect(c.Device.DataTopic(), p.Message)
	c.send(p)
	c.Posted(p.Message)
}

// Have publishes a message that is accepted, to the end.
func (c *Exchange) Have(p Packet) {
	c.Helper()
	c.Expect(c.Device.DataTopic(), p.Message)
	c.Succeed(p)
	c.Posted(p.Message)
}

// Again connects with the same client id, after a cut or while the old connection is open.
func (c *Exchange) Again(clean, cut bool) *Exchange {
	c.Helper()
	if cut {
		c.Cut()
	}
	return c.Open(c.Device, c.Protocol, c.ClientID, clean)
}

// Put publishes over MQTT 5 on a topic, retained or not, and waits for the PUBACK or PUBREC.
func (c *Exchange) Put(topic string, retain bool, p Packet) device.Ack {
	c.Helper()
	ack, err := c.V5.Publish(c.Limit(), &packets5.Publish{
		Topic: topic, QoS: p.QoS, PacketID: p.ID, Duplicate: p.Dup, Retain: retain, Payload: p.Bytes,
	})
	c.Must(err)
	return ack
}
