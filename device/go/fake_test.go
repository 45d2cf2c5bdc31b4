package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// A reply is what the fake broker does with a PUBLISH.
type reply struct {
	code   byte
	notice string // a notice with this reason
	before bool   // the notice comes before the PUBACK
	cut    bool   // the connection ends, without a PUBACK
	silent bool   // there is no PUBACK
}

// A published is a PUBLISH that the fake broker got.
type published struct {
	at        time.Time
	conn      int // from 1 on
	topic     string
	id        string
	timestamp int64
	payload   string
	text      string
}

// A fakeBroker speaks MQTT over pipes, in the time of a synctest bubble.
type fakeBroker struct {
	t       *testing.T
	connack func(*packets.Connack)
	suback  byte
	reply   func(n int, p published) reply // n from 0 on
	// subscribing is called before a SUBACK is sent.
	subscribing func(net.Conn)

	mu       sync.Mutex
	down     bool
	dials    []time.Time
	conns    int
	conn     net.Conn
	got      []published
	packetID uint16
	acked    []uint16 // PUBACKs of the device
}

// A lockedConn is as packets.NewThreadSafeConn makes it, but waiting for it lets the time of a synctest bubble go on.
type lockedConn struct {
	net.Conn
	writing chan struct{}
}

func (c *lockedConn) Lock()   { c.writing <- struct{}{} }
func (c *lockedConn) Unlock() { <-c.writing }

func (b *fakeBroker) dial(context.Context) (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dials = append(b.dials, time.Now())
	if b.down {
		return nil, errors.New("no route to host")
	}
	device, broker := net.Pipe()
	b.conns++
	b.conn = &lockedConn{Conn: broker, writing: make(chan struct{}, 1)}
	go b.serve(b.conn, b.conns)
	return device, nil
}

func (b *fakeBroker) serve(conn net.Conn, number int) {
	defer conn.Close()
	send := func(p packets.Packet, kind byte) {
		packet := packets.ControlPacket{Content: p, FixedHeader: packets.FixedHeader{Type: kind}}
		_, _ = packet.WriteTo(conn) // the device may be gone
	}
	answers := make(chan func(), 1000) // so that reading goes on while the device does not read
	defer close(answers)
	go func() {
		for answer := range answers {
			answer()
		}
	}()
	for {
		packet, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		switch p := packet.Content.(type) {
		case *packets.Connect:
			if p.CleanStart || p.ClientID != "sensor_001" || p.KeepAlive != 30 || *p.Properties.SessionExpiryInterval != 3600 {
				b.t.Errorf("CONNECT %+v", p)
			}
			answer := &packets.Connack{Properties: &packets.Properties{}}
			if b.connack != nil {
				b.connack(answer)
			}
			send(answer, packets.CONNACK)
		case *packets.Subscribe:
			suback := &packets.Suback{Properties: &packets.Properties{}, PacketID: p.PacketID, Reasons: []byte{b.suback}}
			if f := b.subscribing; f != nil {
				go func() { // it may write what the device answers
					f(conn)
					send(suback, packets.SUBACK)
				}()
			} else {
				send(suback, packets.SUBACK)
			}
		case *packets.Pingreq:
			send(&packets.Pingresp{}, packets.PINGRESP)
		case *packets.Puback:
			b.mu.Lock()
			b.acked = append(b.acked, p.PacketID)
			b.mu.Unlock()
		case *packets.Disconnect:
			return
		case *packets.Publish:
			m := published{at: time.Now(), conn: number, topic: p.Topic, text: string(p.Payload)}
			var e struct {
				MessageID string `json:"message_id"`
				Timestamp int64
				Payload   json.RawMessage
			}
			if err := json.Unmarshal(p.Payload, &e); err != nil || p.QoS != 1 || p.Retain {
				b.t.Errorf("PUBLISH %+v: %v", p, err)
			}
			m.id, m.timestamp, m.payload = e.MessageID, e.Timestamp, string(e.Payload)
			b.mu.Lock()
			n := len(b.got)
			b.got = append(b.got, m)
			b.mu.Unlock()
			r := reply{}
			if b.reply != nil {
				r = b.reply(n, m)
			}
			if r.cut {
				return
			}
			notice := func() {
				if r.notice != "" {
					b.publish(conn, "rejected", fmt.Sprintf(`{"message_id":%q,"reason":%q,"server_time":%d}`, m.id, r.notice, time.Now().Unix()))
				}
			}
			id := p.PacketID
			answers <- func() {
				if r.before {
					notice()
				}
				if !r.silent {
					send(&packets.Puback{Properties: &packets.Properties{}, PacketID: id, ReasonCode: r.code}, packets.PUBACK)
				}
				if !r.before {
					notice()
				}
			}
		}
	}
}

// publish sends a message to the device.
func (b *fakeBroker) publish(conn net.Conn, topic, text string) {
	b.mu.Lock()
	b.packetID++
	p := &packets.Publish{QoS: 1, PacketID: b.packetID, Topic: topic, Payload: []byte(text), Properties: &packets.Properties{}}
	b.mu.Unlock()
	packet := packets.ControlPacket{Content: p, FixedHeader: packets.FixedHeader{Type: packets.PUBLISH}}
	_, _ = packet.WriteTo(conn) // the device may be gone
}

// say is publish on the present connection.
func (b *fakeBroker) say(topic, text string) {
	b.mu.Lock()
	conn := b.conn
	b.mu.Unlock()
	b.publish(conn, topic, text)
}

func (b *fakeBroker) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn.Close()
}

func (b *fakeBroker) setDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

func (b *fakeBroker) all() []published {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]published(nil), b.got...)
}

var testSecret = []byte("supersecretkey123")

// open opens a Device that talks to a fake broker.
func open(t *testing.T, b *fakeBroker, options Options) *Device {
	t.Helper()
	credential, err := Secret(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	if options.State == "" {
		options.State = t.TempDir()
	}
	if b != nil {
		b.t = t
	}
	d, err := Open(Config{
		DeviceID: "sensor_001", Address: "broker.example.org:8883", TLS: &tls.Config{RootCAs: x509.NewCertPool()}, Credential: credential,
		Topics: Topics{Data: "data", Response: "response", Rejected: "rejected", Command: "command"},
	}, options)
	if err != nil {
		t.Fatal(err)
	}
	if b != nil {
		d.transport = b.dial
	}
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// publish queues a payload.
func publish(t *testing.T, d *Device, payload string) *Delivery {
	t.Helper()
	delivery, err := d.Publish(t.Context(), json.RawMessage(payload))
	must(t, err)
	return delivery
}

// outcome waits for a delivery, an hour at most.
func outcome(t *testing.T, delivery *Delivery) Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	o, err := delivery.Wait(ctx)
	must(t, err)
	return o
}
