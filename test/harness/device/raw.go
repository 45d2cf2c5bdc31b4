package device

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/uuid"
)

// rawTimeout bounds one read or write of a raw connection whose context has no deadline.
const rawTimeout = 10 * time.Second

// Raw5 speaks MQTT 5 packet by packet, for what no client library does on purpose: DUP without a first copy, a lost
// PUBACK, wills, topic aliases, a connection cut at a chosen moment. One goroutine at a time.
type Raw5 struct {
	// Conn is the TLS connection. Closing it without a DISCONNECT makes the broker send the will.
	Conn net.Conn
	r    *bufio.Reader
}

// DialRaw5 opens the TLS connection; nothing is sent yet.
func (d *Device) DialRaw5(ctx context.Context) (*Raw5, error) {
	conn, err := d.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return &Raw5{Conn: conn, r: bufio.NewReader(conn)}, nil
}

// ConnectRaw5 opens the connection and the session. Unless changed: a client id of its own, a clean start, a
// keep-alive of 30 s.
func (d *Device) ConnectRaw5(ctx context.Context, changes ...func(*packets5.Connect)) (*Raw5, *packets5.Connack, error) {
	c, err := d.DialRaw5(ctx)
	if err != nil {
		return nil, nil, err
	}
	connect := &packets5.Connect{
		ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: d.ID + "-" + uuid.NewString()[:8], CleanStart: true,
		KeepAlive: 30, Properties: &packets5.Properties{},
	}
	for _, change := range changes {
		change(connect)
	}
	if connect.WillFlag && connect.WillProperties == nil {
		connect.WillProperties = &packets5.Properties{}
	}
	connack, err := exchange5[*packets5.Connack](ctx, c, connect)
	if err == nil && connack.ReasonCode != 0 {
		err = &Refused{Code: connack.ReasonCode, err: fmt.Errorf("connecting %s", d.ID)}
	}
	if err != nil {
		c.Conn.Close()
		return nil, connack, err
	}
	return c, connack, nil
}

// Send writes one packet in one piece.
func (c *Raw5) Send(ctx context.Context, p packets5.Packet) error {
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		return fmt.Errorf("encoding %T: %w", p, err)
	}
	return c.SendBytes(ctx, b.Bytes())
}

// SendBytes writes what need not be a packet.
func (c *Raw5) SendBytes(ctx context.Context, b []byte) error {
	if err := c.Conn.SetWriteDeadline(deadline(ctx)); err != nil {
		return err
	}
	_, err := c.Conn.Write(b)
	return err
}

// Next reads one packet.
func (c *Raw5) Next(ctx context.Context) (*packets5.ControlPacket, error) {
	if err := c.Conn.SetReadDeadline(deadline(ctx)); err != nil {
		return nil, err
	}
	return packets5.ReadPacket(c.r)
}

// Publish sends a PUBLISH and waits for the PUBACK or PUBREC of its packet id, whose reason code it returns. Publishes
// that arrive meanwhile are lost. With QoS 0 it waits for nothing.
func (c *Raw5) Publish(ctx context.Context, p *packets5.Publish) (Ack, error) {
	if p.Properties == nil {
		p.Properties = &packets5.Properties{}
	}
	switch p.QoS {
	case 0:
		return Ack{}, c.Send(ctx, p)
	case 1:
		puback, err := exchange5[*packets5.Puback](ctx, c, p)
		if err != nil {
			return Ack{}, err
		}
		return Ack{Code: puback.ReasonCode}, nil
	default:
		pubrec, err := exchange5[*packets5.Pubrec](ctx, c, p)
		if err != nil {
			return Ack{}, err
		}
		return Ack{Code: pubrec.ReasonCode}, nil
	}
}

// Release sends PUBREL for a packet id and waits for the PUBCOMP.
func (c *Raw5) Release(ctx context.Context, packetID uint16) (Ack, error) {
	pubcomp, err := exchange5[*packets5.Pubcomp](ctx, c,
		&packets5.Pubrel{PacketID: packetID, Properties: &packets5.Properties{}})
	if err != nil {
		return Ack{}, err
	}
	return Ack{Code: pubcomp.ReasonCode}, nil
}

// Close sends DISCONNECT and closes: no will is sent.
func (c *Raw5) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Send(ctx, &packets5.Disconnect{Properties: &packets5.Properties{}}) // the broker may have gone first
	return c.Conn.Close()
}

// exchange5 sends p and reads until a packet of type T comes; publishes in between are dropped, anything else is an
// error.
func exchange5[T packets5.Packet](ctx context.Context, c *Raw5, p packets5.Packet) (T, error) {
	var none T
	if err := c.Send(ctx, p); err != nil {
		return none, err
	}
	for {
		got, err := c.Next(ctx)
		if err != nil {
			return none, fmt.Errorf("waiting for %T: %w", none, err)
		}
		switch content := got.Content.(type) {
		case T:
			return content, nil
		case *packets5.Publish:
		default:
			return none, fmt.Errorf("waiting for %T: got %s", none, got)
		}
	}
}

// Raw3 is Raw5 for MQTT 3.1.1. One goroutine at a time.
type Raw3 struct {
	// Conn is the TLS connection. Closing it without a DISCONNECT makes the broker send the will.
	Conn net.Conn
	r    *bufio.Reader
}

// ConnectRaw3 opens the connection and the session. Unless changed: a client id of its own, a clean session, a
// keep-alive of 30 s.
func (d *Device) ConnectRaw3(ctx context.Context, changes ...func(*packets3.ConnectPacket)) (*Raw3, *packets3.ConnackPacket, error) {
	conn, err := d.Dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	c := &Raw3{Conn: conn, r: bufio.NewReader(conn)}
	connect := packets3.NewControlPacket(packets3.Connect).(*packets3.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion = "MQTT", 4
	connect.ClientIdentifier = d.ID + "-" + uuid.NewString()[:8]
	connect.CleanSession, connect.Keepalive = true, 30
	for _, change := range changes {
		change(connect)
	}
	connack, err := exchange3[*packets3.ConnackPacket](ctx, c, connect)
	if err == nil && connack.ReturnCode != 0 {
		err = &Refused{Code: connack.ReturnCode, err: fmt.Errorf("connecting %s", d.ID)}
	}
	if err != nil {
		conn.Close()
		return nil, connack, err
	}
	return c, connack, nil
}

// Send writes one packet in one piece.
func (c *Raw3) Send(ctx context.Context, p packets3.ControlPacket) error {
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		return fmt.Errorf("encoding %T: %w", p, err)
	}
	if err := c.Conn.SetWriteDeadline(deadline(ctx)); err != nil {
		return err
	}
	_, err := c.Conn.Write(b.Bytes())
	return err
}

// Next reads one packet.
func (c *Raw3) Next(ctx context.Context) (packets3.ControlPacket, error) {
	if err := c.Conn.SetReadDeadline(deadline(ctx)); err != nil {
		return nil, err
	}
	return packets3.ReadPacket(c.r)
}

// Publish sends a PUBLISH and waits for the PUBACK or PUBREC. Publishes that arrive meanwhile are lost. With QoS 0 it
// waits for nothing.
func (c *Raw3) Publish(ctx context.Context, topic string, qos byte, packetID uint16, dup bool, payload []byte) error {
	p := packets3.NewControlPacket(packets3.Publish).(*packets3.PublishPacket)
	p.TopicName, p.Qos, p.MessageID, p.Dup, p.Payload = topic, qos, packetID, dup, payload
	var err error
	switch qos {
	case 0:
		err = c.Send(ctx, p)
	case 1:
		_, err = exchange3[*packets3.PubackPacket](ctx, c, p)
	default:
		_, err = exchange3[*packets3.PubrecPacket](ctx, c, p)
	}
	return err
}

// Release sends PUBREL for a packet id and waits for the PUBCOMP.
func (c *Raw3) Release(ctx context.Context, packetID uint16) error {
	p := packets3.NewControlPacket(packets3.Pubrel).(*packets3.PubrelPacket)
	p.MessageID = packetID
	_, err := exchange3[*packets3.PubcompPacket](ctx, c, p)
	return err
}

// Close sends DISCONNECT and closes: no will is sent.
func (c *Raw3) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Send(ctx, packets3.NewControlPacket(packets3.Disconnect)) // the broker may have gone first
	return c.Conn.Close()
}

func exchange3[T packets3.ControlPacket](ctx context.Context, c *Raw3, p packets3.ControlPacket) (T, error) {
	var none T
	if err := c.Send(ctx, p); err != nil {
		return none, err
	}
	for {
		got, err := c.Next(ctx)
		if err != nil {
			return none, fmt.Errorf("waiting for %T: %w", none, err)
		}
		switch content := got.(type) {
		case T:
			return content, nil
		case *packets3.PublishPacket:
		default:
			return none, fmt.Errorf("waiting for %T: got %s", none, got)
		}
	}
}

func deadline(ctx context.Context) time.Time {
	if at, ok := ctx.Deadline(); ok {
		return at
	}
	return time.Now().Add(rawTimeout)
}
