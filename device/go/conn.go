package device

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session"
	"github.com/eclipse/paho.golang/paho/session/state"
)

const (
	keepAlive     = 30   // seconds
	sessionExpiry = 3600 // seconds
	dialTimeout   = 30 * time.Second
	// receiveMaximum is how many messages the broker may have sent without an acknowledgement; it bounds what waits in memory.
	receiveMaximum = 16
	// maxPacket is the longest packet that is read, in bytes. Commands and responses are shorter.
	maxPacket = 256 << 10
	// writeTimeout is how long the broker may take nothing of a packet, closeTimeout how long once the Device is being closed.
	writeTimeout = keepAlive * time.Second
	closeTimeout = 2 * time.Second
	// maxWrite is how many bytes of a packet have writeTimeout for themselves, so that a slow network is not taken for a dead one.
	maxWrite = 4 << 10
)

// A conn is one connection. A paho.Client is used for one connection only, so it sends nothing again by itself.
type conn struct {
	client  *paho.Client
	session *acks
	bounded *boundedConn
	window  int    // how many messages the broker takes without an acknowledgement
	largest uint32 // the longest packet that the broker takes, in bytes; 0: any
}

// dial connects. received is called for each message from the broker, in order; it is acknowledged when that returns.
func (d *Device) dial(ctx context.Context, received func(topic string, payload []byte)) (*conn, error) {
	closing := ctx
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	tcp, err := d.transport(ctx)
	if err != nil {
		return nil, err
	}
	c := &conn{window: maxInFlight, bounded: &boundedConn{Conn: tcp, closing: closing, writing: make(chan struct{}, 1)}}
	c.session = &acks{SessionManager: state.NewInMemory(), arrived: make(chan ack, maxInFlight), ended: make(chan struct{})}
	c.client = paho.NewClient(paho.ClientConfig{
		Conn:        c.bounded,
		Session:     c.session,
		AuthHandler: noAuth{},
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			received(r.Packet.Topic, r.Packet.Payload)
			return true, nil
		}},
	})
	expiry, most, longest := uint32(sessionExpiry), uint16(receiveMaximum), uint32(maxPacket)
	connack, err := c.client.Connect(ctx, &paho.Connect{
		ClientID: d.config.DeviceID, KeepAlive: keepAlive,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, ReceiveMaximum: &most, MaximumPacketSize: &longest},
	})
	if err != nil {
		if connack != nil {
			err = fmt.Errorf("the broker refuses the connection with code 0x%02x: %w", connack.ReasonCode, err)
		}
		return nil, errors.Join(err, tcp.Close())
	}
	if p := connack.Properties; p != nil {
		if p.ReceiveMaximum != nil {
			if *p.ReceiveMaximum == 0 { // paho would wait for ever
				return nil, errors.Join(errors.New("the broker has a receive maximum of 0"), c.client.Disconnect(&paho.Disconnect{}))
			}
			c.window = min(c.window, int(*p.ReceiveMaximum))
		}
		if p.MaximumPacketSize != nil {
			c.largest = *p.MaximumPacketSize
		}
		if p.MaximumQoS != nil && *p.MaximumQoS == 0 {
			return nil, errors.Join(errors.New("the broker takes no messages at QoS 1"), c.client.Disconnect(&paho.Disconnect{}))
		}
	}
	return c, nil
}

// subscribe asks for a topic. granted is false if the broker refuses it.
func (c *conn) subscribe(ctx context.Context, topic string) (granted bool, err error) {
	suback, err := c.client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: topic, QoS: 1}}})
	if suback == nil {
		return false, err
	}
	return len(suback.Reasons) == 1 && suback.Reasons[0] < 0x80, nil
}

// publish sends a message at QoS 1 and returns its packet id, without waiting for the acknowledgement.
func (c *conn) publish(ctx context.Context, topic string, payload []byte) (uint16, error) {
	c.session.id = 0
	_, err := c.client.PublishWithOptions(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: payload},
		paho.PublishOptions{Method: paho.PublishMethod_AsyncSend})
	return c.session.id, err
}

// close ends the connection in order, or makes sure that it has ended.
func (c *conn) close() {
	_ = c.client.Disconnect(&paho.Disconnect{}) // it may have ended already
	<-c.client.Done()
}

// An ack is a PUBACK.
type ack struct {
	packet uint16
	code   byte
}

// acks is the session state of one connection, which ends with it. It hands on the packet ids and the PUBACKs, which paho's
// asynchronous publishing keeps to itself.
type acks struct {
	session.SessionManager
	id      uint16 // of the PUBLISH that was sent last; of the goroutine that publishes
	arrived chan ack
	ended   chan struct{}
}

// ConnectionLost implements session.SessionManager. The state is of no use for another connection; closing it ends what waits.
func (a *acks) ConnectionLost(p *packets.Disconnect) error {
	return errors.Join(a.SessionManager.ConnectionLost(p), a.SessionManager.Close())
}

// AddToSession implements session.SessionManager.
func (a *acks) AddToSession(ctx context.Context, p session.Packet, response chan<- packets.ControlPacket) error {
	err := a.SessionManager.AddToSession(ctx, p, response)
	if publish, ok := p.(*packets.Publish); ok && err == nil {
		a.id = publish.PacketID
	}
	return err
}

// PacketReceived implements session.SessionManager.
func (a *acks) PacketReceived(p *packets.ControlPacket, messages chan<- *packets.Publish) error {
	err := a.SessionManager.PacketReceived(p, messages)
	if puback, ok := p.Content.(*packets.Puback); ok {
		select {
		case a.arrived <- ack{puback.PacketID, puback.ReasonCode}:
		case <-a.ended:
		}
	}
	return err
}

// noAuth answers enhanced authentication, for which the device has not asked, in a way that ends it.
type noAuth struct{}

func (noAuth) Authenticate(*paho.Auth) *paho.Auth { return &paho.Auth{ReasonCode: 0x18} }
func (noAuth) Authenticated()                     {}

// A boundedConn ends the connection when the broker begins a packet that is longer than maxPacket: paho makes room for all of
// a packet when it has read its length. It also ends when the broker does not read for writeTimeout. paho locks it while it
// writes a packet.
type boundedConn struct {
	net.Conn
	closing context.Context // of the Device
	writing chan struct{}   // has room for the one that writes
	length  []byte          // of the packet that begins, as far as it was read; the first byte is the packet's type
	rest    int             // of the packet, in bytes
}

var errPacket = errors.New("the broker sends a packet that is too long")

// Lock implements sync.Locker.
func (c *boundedConn) Lock() { c.writing <- struct{}{} }

// Unlock implements sync.Locker.
func (c *boundedConn) Unlock() { <-c.writing }

// Write implements net.Conn. After an error nothing more is written: a part of a packet may have been.
func (c *boundedConn) Write(p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		var k int
		if err = c.SetWriteDeadline(time.Now().Add(writeTimeout)); err == nil {
			if c.closing.Err() != nil {
				c.hurry()
			}
			k, err = c.Conn.Write(p[n:min(len(p), n+maxWrite)])
			n += k
		}
	}
	if err != nil {
		return n, errors.Join(err, c.Conn.Close())
	}
	return n, nil
}

// hurry has what is being written end soon.
func (c *boundedConn) hurry() {
	_ = c.SetWriteDeadline(time.Now().Add(closeTimeout)) // it fails on a connection that has ended
}

// Read implements net.Conn. paho reads from one goroutine.
func (c *boundedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if c.rest > 0 {
			skip := min(c.rest, len(b))
			c.rest -= skip
			b = b[skip:]
			continue
		}
		c.length = append(c.length, b[0])
		b = b[1:]
		if k := len(c.length); k > 1 && c.length[k-1] < 0x80 {
			for i := k - 1; i > 0; i-- {
				c.rest = c.rest<<7 | int(c.length[i]&0x7f)
			}
			c.length = c.length[:0]
		} else if k > 4 {
			return 0, errPacket
		}
		if c.rest > maxPacket {
			return 0, errPacket
		}
	}
	return n, err
}
