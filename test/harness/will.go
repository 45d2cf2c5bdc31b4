package harness

import (
	"io"
	"net"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"mosquitto-bouncer/test/harness/device"
)

// A LastWill is what a client leaves with the broker when it connects, at QoS 1 and retained.
type LastWill struct {
	Topic   string
	Message []byte
	Delay   uint32 // seconds after the end of the connection; MQTT 5 only
}

// A Testator is a connection with a last will, open until it is ended.
type Testator struct {
	net.Conn
	Device   *device.Device
	Protocol Protocol
	ClientID string
}

// LeaveWill connects a device with a last will. The session ends with the connection, unless the will is delayed.
func (g *Gateway) LeaveWill(d *device.Device, p Protocol, clientID string, keepAlive uint16, w LastWill) *Testator {
	g.Helper()
	t := &Testator{Device: d, Protocol: p, ClientID: clientID}
	switch p {
	case MQTT5:
		c, _, err := d.ConnectRaw5(g.Limit(), func(c *packets5.Connect) {
			c.ClientID, c.KeepAlive = clientID, keepAlive
			c.WillFlag, c.WillRetain, c.WillQOS, c.WillTopic, c.WillMessage = true, true, 1, w.Topic, w.Message
			if w.Delay > 0 {
				c.WillProperties = &packets5.Properties{WillDelayInterval: &w.Delay}
				c.Properties.SessionExpiryInterval = new(uint32(3600))
			}
		})
		g.Must(err)
		t.Conn = c.Conn
	default:
		c, _, err := d.ConnectRaw3(g.Limit(), func(c *packets3.ConnectPacket) {
			c.ClientIdentifier, c.Keepalive = clientID, keepAlive
			c.WillFlag, c.WillRetain, c.WillQos, c.WillTopic, c.WillMessage = true, true, 1, w.Topic, w.Message
		})
		g.Must(err)
		t.Conn = c.Conn
	}
	g.Must(t.SetDeadline(time.Time{})) // connecting has left one
	g.Cleanup(func() { t.Close() })
	return t
}

// TakeOver connects with the testator's client id while its connection is open, and waits until the broker has closed
// that.
func (t *Testator) TakeOver(g *Gateway, as *device.Device, clean bool) {
	g.Helper()
	var conn net.Conn
	if t.Protocol == MQTT5 {
		c, _, err := as.ConnectRaw5(g.Limit(), func(c *packets5.Connect) { c.ClientID, c.CleanStart = t.ClientID, clean })
		g.Must(err)
		conn = c.Conn
	} else {
		c, _, err := as.ConnectRaw3(g.Limit(), func(c *packets3.ConnectPacket) { c.ClientIdentifier, c.CleanSession = t.ClientID, clean })
		g.Must(err)
		conn = c.Conn
	}
	g.Cleanup(func() { conn.Close() })
	_, err := io.Copy(io.Discard, t.Conn)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		g.Fatalf("the connection that was taken over stays open: %v", err)
	}
}

// Cut ends the connection as a network does.
func Cut(g *Gateway, t *Testator) { g.Must(t.Close()) }
