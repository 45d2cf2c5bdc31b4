package device

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/uuid"
)

// Client is a connection over either version of MQTT. Safe for concurrent use.
type Client interface {
	// Publish sends and, with QoS 1 and 2, waits until the broker's answer to it is complete. A refusal is an Ack,
	// not an error; an error means that no answer came, for instance because the broker closed the connection.
	Publish(ctx context.Context, topic string, qos byte, retain bool, payload []byte) (Ack, error)
	// Subscribe waits for the SUBACK; a refusal is an error.
	Subscribe(ctx context.Context, filter string, qos byte) error
	// Inbox holds what arrived.
	Inbox() *Inbox
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
	// Close disconnects in order: no will is sent.
	Close() error
}

// Ack is the broker's answer to a publish.
type Ack struct {
	// Code is the MQTT 5 reason code of the PUBACK, PUBREC or PUBCOMP; always 0 with MQTT 3.1.1 and with QoS 0.
	Code byte
}

// The reason codes that matter here (MQTT 5, section 2.4).
const (
	Success               byte = 0x00
	NoMatchingSubscribers byte = 0x10
	NotAuthorized         byte = 0x87
)

// Accepted reports whether the code is one of success. MQTT 3.1.1 cannot say otherwise.
func (a Ack) Accepted() bool { return a.Code < 0x80 }

func (a Ack) String() string {
	switch a.Code {
	case Success:
		return "0x00 success"
	case NoMatchingSubscribers:
		return "0x10 no matching subscribers"
	case NotAuthorized:
		return "0x87 not authorized"
	}
	return fmt.Sprintf("0x%02x", a.Code)
}

// Received is a publish that reached a client. Properties is nil with MQTT 3.1.1.
type Received struct {
	Topic      string
	Payload    []byte
	QoS        byte
	Retain     bool
	Duplicate  bool
	Properties *paho.PublishProperties
	At         time.Time
}

// Inbox collects the publishes that reached a client, in order. Safe for concurrent use.
type Inbox struct {
	mu      sync.Mutex
	all     []Received
	changed chan struct{} // closed and replaced at every arrival
}

func newInbox() *Inbox { return &Inbox{changed: make(chan struct{})} }

func (in *Inbox) add(r Received) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.all = append(in.all, r)
	close(in.changed)
	in.changed = make(chan struct{})
}

// All returns what has arrived so far.
func (in *Inbox) All() []Received {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.all[:len(in.all):len(in.all)]
}

// On returns what has arrived so far on one topic.
func (in *Inbox) On(topic string) []Received {
	var on []Received
	for _, r := range in.All() {
		if r.Topic == topic {
			on = append(on, r)
		}
	}
	return on
}

// Wait returns the first publish that match accepts, whether it is there already or yet to come.
func (in *Inbox) Wait(ctx context.Context, match func(Received) bool) (Received, error) {
	seen := 0
	for {
		in.mu.Lock()
		all, changed := in.all, in.changed
		in.mu.Unlock()
		for ; seen < len(all); seen++ {
			if match(all[seen]) {
				return all[seen], nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Received{}, fmt.Errorf("waiting for a publish, %d others arrived: %w", seen, context.Cause(ctx))
		}
	}
}

// WaitCount waits until n publishes have arrived on the topic, and returns them.
func (in *Inbox) WaitCount(ctx context.Context, topic string, n int) ([]Received, error) {
	got := 0
	_, err := in.Wait(ctx, func(r Received) bool {
		if r.Topic == topic {
			got++
		}
		return got >= n
	})
	if err != nil {
		return in.On(topic), fmt.Errorf("%d of %d publishes on %q: %w", got, n, topic, err)
	}
	return in.On(topic), nil
}

// V5 is a connection over MQTT 5. Safe for concurrent use.
type V5 struct {
	// Paho is the library's client, for what Client does not offer.
	Paho  *paho.Client
	inbox *Inbox
}

// ConnectV5 connects over MQTT 5. Unless changed: a client id of its own, a clean start, a keep-alive of 30 s. An
// error of type *Refused means that the broker answered and said no.
func (d *Device) ConnectV5(ctx context.Context, changes ...func(*paho.Connect)) (*V5, error) {
	conn, err := d.Dial(ctx)
	if err != nil {
		return nil, err
	}
	inbox := newInbox()
	client := paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(conn),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			inbox.add(Received{
				Topic: r.Packet.Topic, Payload: r.Packet.Payload, QoS: r.Packet.QoS, Retain: r.Packet.Retain,
				Duplicate: r.Packet.Duplicate(), Properties: r.Packet.Properties, At: time.Now(),
			})
			return true, nil
		}},
	})
	connect := &paho.Connect{ClientID: d.ID + "-" + uuid.NewString()[:8], CleanStart: true, KeepAlive: 30}
	for _, change := range changes {
		change(connect)
	}
	connack, err := client.Connect(ctx, connect)
	if err != nil {
		err = fmt.Errorf("connecting %s: %w", d.ID, err)
		if connack != nil {
			err = &Refused{Code: connack.ReasonCode, err: err}
		}
		return nil, errors.Join(err, conn.Close())
	}
	return &V5{Paho: client, inbox: inbox}, nil
}

// Refused says that the broker answered CONNECT with a CONNACK of failure.
type Refused struct {
	Code byte // the CONNACK's reason code
	err  error
}

func (r *Refused) Error() string { return fmt.Sprintf("CONNACK 0x%02x: %v", r.Code, r.err) }

func (r *Refused) Unwrap() error { return r.err }

// Publish is Client's.
func (c *V5) Publish(ctx context.Context, topic string, qos byte, retain bool, payload []byte) (Ack, error) {
	return c.PublishPacket(ctx, &paho.Publish{Topic: topic, QoS: qos, Retain: retain, Payload: payload})
}

// PublishPacket publishes with whatever properties the packet has.
func (c *V5) PublishPacket(ctx context.Context, p *paho.Publish) (Ack, error) {
	answer, err := c.Paho.Publish(ctx, p)
	if answer == nil {
		return Ack{}, fmt.Errorf("publishing to %q: %w", p.Topic, err)
	}
	return Ack{Code: answer.ReasonCode}, nil
}

// Subscribe is Client's.
func (c *V5) Subscribe(ctx context.Context, filter string, qos byte) error {
	_, err := c.Paho.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}})
	if err != nil {
		return fmt.Errorf("subscribing to %q: %w", filter, err)
	}
	return nil
}

// Inbox is Client's.
func (c *V5) Inbox() *Inbox { return c.inbox }

// Done is Client's.
func (c *V5) Done() <-chan struct{} { return c.Paho.Done() }

// Close is Client's.
func (c *V5) Close() error {
	err := c.Paho.Disconnect(&paho.Disconnect{})
	<-c.Paho.Done()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// V3 is a connection over MQTT 3.1.1, which has no reason codes: a refused publish is acknowledged like any other.
// Safe for concurrent use.
type V3 struct {
	// Paho is the library's client, for what Client does not offer.
	Paho  mqtt.Client
	inbox *Inbox
	done  chan struct{}
	once  sync.Once
}

// ConnectV3 connects over MQTT 3.1.1. Unless changed: a client id of its own, a clean session, a keep-alive of 30 s,
// no reconnecting.
func (d *Device) ConnectV3(ctx context.Context, changes ...func(*mqtt.ClientOptions)) (*V3, error) {
	c := &V3{inbox: newInbox(), done: make(chan struct{})}
	options := mqtt.NewClientOptions().
		AddBroker("ssl://" + d.Addr).
		SetClientID(d.ID + "-" + uuid.NewString()[:8]).
		SetProtocolVersion(4).
		SetTLSConfig(d.TLS()).
		SetKeepAlive(30 * time.Second).
		SetConnectTimeout(timeLeft(ctx)).
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetOrderMatters(true).
		SetConnectionLostHandler(func(mqtt.Client, error) { c.ended() }).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
			c.inbox.add(Received{
				Topic: m.Topic(), Payload: m.Payload(), QoS: m.Qos(), Retain: m.Retained(), Duplicate: m.Duplicate(),
				At: time.Now(),
			})
		})
	for _, change := range changes {
		change(options)
	}
	c.Paho = mqtt.NewClient(options)
	if err := wait(ctx, c.Paho.Connect()); err != nil {
		return nil, fmt.Errorf("connecting %s to %s: %w", d.ID, d.Addr, err)
	}
	return c, nil
}

func (c *V3) ended() { c.once.Do(func() { close(c.done) }) }

// Publish is Client's.
func (c *V3) Publish(ctx context.Context, topic string, qos byte, retain bool, payload []byte) (Ack, error) {
	if err := wait(ctx, c.Paho.Publish(topic, qos, retain, payload)); err != nil {
		return Ack{}, fmt.Errorf("publishing to %q: %w", topic, err)
	}
	return Ack{}, nil
}

// Subscribe is Client's.
func (c *V3) Subscribe(ctx context.Context, filter string, qos byte) error {
	token := c.Paho.Subscribe(filter, qos, nil)
	if err := wait(ctx, token); err != nil {
		return fmt.Errorf("subscribing to %q: %w", filter, err)
	}
	if granted := token.(*mqtt.SubscribeToken).Result()[filter]; granted > 2 {
		return fmt.Errorf("subscribing to %q: refused with 0x%02x", filter, granted)
	}
	return nil
}

// Inbox is Client's.
func (c *V3) Inbox() *Inbox { return c.inbox }

// Done is Client's.
func (c *V3) Done() <-chan struct{} { return c.done }

// Close is Client's.
func (c *V3) Close() error {
	c.Paho.Disconnect(250)
	c.ended()
	return nil
}

func wait(ctx context.Context, token mqtt.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// timeLeft is the time until ctx ends, 30 s when it does not.
func timeLeft(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(time.Until(deadline), time.Millisecond)
	}
	return 30 * time.Second
}

var (
	_ Client = (*V5)(nil)
	_ Client = (*V3)(nil)
)
