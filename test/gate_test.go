// Package test drives the real broker with the real plugin, over real TLS, against a backend that records what it gets.
package test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// patience bounds every single wait. It is generous because the machine may be busy; nothing waits for it in vain but a
// test that fails.
const patience = 20 * time.Second

// A gate is a broker with the plugin and the backend behind it. What accept and refuse did is kept, so that
// nothingElse can tell what should not have come through. Its methods are for one goroutine, unless they say otherwise.
type gate struct {
	*testing.T
	broker  *broker.Broker
	backend *backend.Backend
	monitor *device.V5 // reads everything, once watch has been called
	// tickless: the broker never ticks, so after one at QoS 2 the gateway publishes all messages on that topic itself, and
	// the broker knows of no subscriber when it acknowledges them.
	tickless bool

	mu       sync.Mutex // guards what follows
	accepted []delivery
	refused  []delivery
}

// A delivery is a message on a topic.
type delivery struct {
	device.Message
	topic string
	what  string // for the failure's text
}

// newGate starts a backend, and a broker that posts to it. Both end with the test.
func newGate(t *testing.T, options broker.Options) *gate {
	t.Helper()
	g := &gate{T: t, backend: backend.Start(t)}
	if options.BackendURL == "" {
		options.BackendURL = g.backend.URL()
	}
	g.broker = broker.Start(t, options)
	g.tickless = options.PerListenerSettings && !g.broker.Version().AtLeast(2, 0, 15)
	return g
}

// sub is the same gate for a subtest.
func (g *gate) sub(name string, run func(g *gate)) {
	outer := g.T
	defer func() { g.T = outer }()
	outer.Run(name, func(t *testing.T) {
		g.T = t
		run(g)
	})
}

// limit returns a context for one wait. Safe for concurrent use.
func (g *gate) limit() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	g.Cleanup(cancel)
	return ctx
}

// no fails the test on an error.
func (g *gate) no(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

// device is the identity with this common name, registered or not.
func (g *gate) device(id string) *device.Device {
	g.Helper()
	d, err := g.broker.Device(id)
	g.no(err)
	return d
}

// A protocol is a version of MQTT.
type protocol int

const (
	mqtt311 protocol = iota
	mqtt5
)

func (p protocol) String() string { return [...]string{"MQTT 3.1.1", "MQTT 5"}[p] }

// refusal is the reason code of a refused publish: MQTT 3.1.1 has none, nor has QoS 0 an acknowledgement.
func (p protocol) refusal(qos byte) byte {
	if p == mqtt5 && qos > 0 {
		return device.NotAuthorized
	}
	return device.Success
}

// A client is a connection that knows its version and who it is to the broker.
type client struct {
	device.Client
	*device.Device
	protocol protocol
	username string
	disabled bool // registered, and disabled
}

// connect opens a connection of its own for a device, to the listener that takes the user name from the certificate. It
// is closed at the end of the (sub)test.
func (g *gate) connect(d *device.Device, p protocol) *client {
	g.Helper()
	c := g.connectAs(d, p, "")
	c.username = d.ID
	return c
}

// connectAs is connect with a user name of the client's choice, none when empty.
func (g *gate) connectAs(d *device.Device, p protocol, username string) *client {
	g.Helper()
	c := &client{Device: d, protocol: p, username: username}
	var err error
	switch p {
	case mqtt5:
		c.Client, err = d.ConnectV5(g.limit(), func(c *paho.Connect) { c.Username, c.UsernameFlag = username, username != "" })
	default:
		c.Client, err = d.ConnectV3(g.limit(), func(o *mqtt.ClientOptions) { o.SetUsername(username) })
	}
	g.no(err)
	g.Cleanup(func() { _ = c.Close() }) // the broker may have gone first
	return c
}

// watch connects the monitor: a client with a certificate of its own that subscribes to everything.
func (g *gate) watch() {
	g.Helper()
	var err error
	g.monitor, err = g.device("monitor").ConnectV5(g.limit())
	g.no(err)
	g.Cleanup(func() { _ = g.monitor.Close() })
	g.no(g.monitor.Subscribe(g.limit(), "#", 2))
}

// publish fails the test unless the broker answers, whatever it says.
func (g *gate) publish(c *client, topic string, qos byte, message []byte) device.Ack {
	g.Helper()
	ack, err := c.Publish(g.limit(), topic, qos, false, message)
	if err != nil {
		g.Fatalf("QoS %d over %v: %v", qos, c.protocol, err)
	}
	return ack
}

// accept publishes a message to the device's topic and waits until it has reached the backend and, if there is one, the
// monitor, byte for byte.
func (g *gate) accept(c *client, qos byte, m device.Message) *backend.Request {
	g.Helper()
	topic := "device/" + m.DeviceID + "/data"
	g.expect(topic, m)
	ack := g.publish(c, topic, qos, m.Bytes)
	if !ack.Accepted() {
		g.Fatalf("a good message, QoS %d over %v: got %v", qos, c.protocol, ack)
	}
	if g.monitor != nil {
		got := g.delivered(topic, m.Bytes)
		if got.QoS != qos || got.Retain || got.Duplicate {
			g.Errorf("a publish at QoS %d reached the monitor with QoS %d, retain %v, duplicate %v", qos, got.QoS, got.Retain, got.Duplicate)
		}
		relayed := g.tickless && qos == 1 && ack.Code == device.NoMatchingSubscribers
		if qos > 0 && ack.Code != device.Success && !relayed {
			g.Errorf("a message that has a subscriber: got %v", ack)
		}
	}
	return g.posted(m)
}

// expect notes that a message, published in another way than by accept, is to be delivered. Safe for concurrent use.
func (g *gate) expect(topic string, m device.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accepted = append(g.accepted, delivery{m, topic, "accepted"})
}

// posted waits until the backend has a message and checks the body. Safe for concurrent use.
func (g *gate) posted(m device.Message) *backend.Request {
	g.Helper()
	r, err := g.backend.WaitFor(g.limit(), func(r *backend.Request) bool {
		return r.Device == m.DeviceID && strings.EqualFold(r.MessageID(), m.MessageID)
	})
	if err != nil {
		g.Fatalf("message %s of %s: %v", m.MessageID, m.DeviceID, err)
	}
	if !bytes.Equal(r.Body, m.Payload) {
		g.Errorf("the backend got %q, the payload is %q", r.Body, m.Payload)
	}
	return r
}

// delivered waits until the monitor has a message.
func (g *gate) delivered(topic string, message []byte) device.Received {
	g.Helper()
	got, err := g.monitor.Inbox().Wait(g.limit(), func(r device.Received) bool {
		return r.Topic == topic && bytes.Equal(r.Payload, message)
	})
	if err != nil {
		g.Fatalf("on %q: %v", topic, err)
	}
	return got
}

// refuse publishes a message that is to be refused: with the reason code where there is one, one line in the log with
// exactly this reason and this client's user name, and the connection left alone. That it reaches nobody is for
// nothingElse to find out. One gate has room for a hundred refusals in quick succession: the plugin then writes a line for
// some of them only.
func (g *gate) refuse(c *client, topic string, qos byte, m device.Message, reason string) {
	g.Helper()
	what := fmt.Sprintf("refused as %s, QoS %d over %v", reason, qos, c.protocol)
	g.mu.Lock()
	g.refused = append(g.refused, delivery{m, topic, what})
	g.mu.Unlock()

	mark := g.broker.Log().Mark()
	ack := g.publish(c, topic, qos, m.Bytes)
	if ack.Code != c.protocol.refusal(qos) {
		g.Errorf("%s: acknowledged with %v, want 0x%02x", what, ack, c.protocol.refusal(qos))
	}
	line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device="))
	g.no(err)
	got := fields(line)
	if got["reason"] != reason || got["topic"] != topic || got["device"] != c.username {
		g.Errorf("%s on topic %q by %q: the log says: %s", what, topic, c.username, line)
	}
	id := m.MessageID
	if slices.Contains([]string{"no_tls_identity", "topic_mismatch", "rate_limited", "too_large", "malformed", "internal"}, reason) {
		id = "" // refused before it was parsed to its end
	}
	if got["message_id"] != id {
		g.Errorf("%s: the message is %q, the log says: %s", what, id, line)
	}
	if bytes.Contains([]byte(line), c.Secret) {
		g.Errorf("%s: the log tells the secret: %s", what, line)
	}
	// Another packet there and back shows that the connection still works. Who bears a device's name may subscribe to
	// that device's responses alone.
	topic = c.ResponseTopic()
	if c.username != "" {
		topic = "device/" + c.username + "/response"
	}
	if reason == "disabled" || c.disabled { // which may not
		g.mu.Lock()
		g.refused = append(g.refused, delivery{topic: topic, what: "subscription"})
		g.mu.Unlock()
		if code := g.subscribe(c, topic); code < 0x80 {
			g.Errorf("%s: and may subscribe: 0x%02x", what, code)
		}
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device=", "topic="+topic, "reason=disabled"))
		g.no(err)
		return
	}
	if err := c.Subscribe(g.limit(), topic, 0); err != nil {
		g.Errorf("%s: the connection afterwards: %v", what, err)
	}
}

// fields reads the key=value pairs of a log line of the plugin.
func fields(line string) map[string]string {
	found := map[string]string{}
	for line != "" {
		word, rest, _ := strings.Cut(line, " ")
		key, value, pair := strings.Cut(word, "=")
		if pair && strings.HasPrefix(value, `"`) {
			start := len(key) + 1
			if quoted, err := strconv.QuotedPrefix(line[start:]); err == nil {
				value, _ = strconv.Unquote(quoted) // QuotedPrefix has checked it
				rest = strings.TrimPrefix(line[start+len(quoted):], " ")
			}
		}
		if pair {
			found[key] = value
		}
		line = rest
	}
	return found
}

// nothingElse ends the gate's work: the monitor and the backend must have got what was accepted, each message once, and
// nothing else. A last good message of the witness, which must be registered, tells when whatever was going to reach the
// monitor has done so; stopping the broker does the same for the backend. Responses are not looked at.
func (g *gate) nothingElse(witness string) {
	g.Helper()
	d := g.device(witness)
	g.accept(g.connect(d, mqtt5), 1, d.Sign(`"nothing else"`))
	if g.monitor != nil {
		g.noMore("the monitor", g.unexpectedPublishes())
	}
	g.no(g.broker.Stop())
	g.noMore("the backend", g.unexpectedRequests())

	refusals := g.broker.Log().Find(0, broker.Contains("bouncer: refused device="))
	if len(refusals) != len(g.refused) {
		g.Errorf("%d lines of refusals for %d refused publishes:\n\t%s", len(refusals), len(g.refused), strings.Join(refusals, "\n\t"))
	}
}

func (g *gate) noMore(who string, surprises []string) {
	g.Helper()
	for _, surprise := range surprises {
		g.Errorf("%s: %s", who, surprise)
	}
}

// unexpectedPublishes compares what the monitor got on device/+/data with what was accepted.
func (g *gate) unexpectedPublishes() (surprises []string) {
	left := slices.Clone(g.accepted)
	for _, r := range g.monitor.Inbox().All() {
		levels := strings.Split(r.Topic, "/")
		if len(levels) != 3 || levels[0] != "device" || levels[2] != "data" {
			continue
		}
		same := func(d delivery) bool { return d.topic == r.Topic && bytes.Equal(d.Bytes, r.Payload) }
		if i := slices.IndexFunc(left, same); i >= 0 {
			left = slices.Delete(left, i, i+1)
			continue
		}
		surprises = append(surprises, fmt.Sprintf("got on %q: %.400q (%s)", r.Topic, r.Payload, g.origin(same)))
	}
	return append(surprises, missing(left)...)
}

// unexpectedRequests compares what the backend got with what was accepted.
func (g *gate) unexpectedRequests() (surprises []string) {
	left := slices.Clone(g.accepted)
	for _, r := range g.backend.Requests() {
		same := func(d delivery) bool {
			return d.DeviceID == r.Device && strings.EqualFold(d.MessageID, r.MessageID()) && bytes.Equal(d.Payload, r.Body)
		}
		if i := slices.IndexFunc(left, same); i >= 0 {
			left = slices.Delete(left, i, i+1)
			continue
		}
		surprises = append(surprises, fmt.Sprintf("got %s %s %s: %.400q (%s)", r.Method, r.Path, r.MessageID(), r.Body, g.origin(same)))
	}
	return append(surprises, missing(left)...)
}

func missing(left []delivery) (surprises []string) {
	for _, d := range left {
		surprises = append(surprises, fmt.Sprintf("did not get %s of %s: %.400q", d.MessageID, d.DeviceID, d.Payload))
	}
	return surprises
}

// origin says which message it was that should not have come.
func (g *gate) origin(same func(delivery) bool) string {
	for _, d := range slices.Concat(g.refused, g.accepted) {
		if same(d) {
			return d.what
		}
	}
	return "unknown"
}

func ptr[T any](v T) *T { return &v }

var bothProtocols, mqtt5Only = []protocol{mqtt5, mqtt311}, []protocol{mqtt5}

// leaveSubscribed makes a session that lasts, and leaves it.
func (g *gate) leaveSubscribed(id, filter string) {
	g.Helper()
	c := g.resume(id)
	g.no(c.Subscribe(g.limit(), filter, 2))
	g.no(c.Close())
}

// resume goes on with a session that lasts.
func (g *gate) resume(id string) *device.V5 {
	g.Helper()
	c, err := g.device(id).ConnectV5(g.limit(), func(c *paho.Connect) {
		c.ClientID, c.CleanStart = id, false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: ptr[uint32](3600)}
	})
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	return c
}

// newGateWith is newGate with files in the broker's directory that must be there when it starts; {dir} in them stands for
// it.
func newGateWith(t *testing.T, options broker.Options, files map[string]string) *gate {
	t.Helper()
	g := &gate{T: t, backend: backend.Start(t)}
	options.BackendURL = g.backend.URL()
	var err error
	g.broker, err = broker.New(options)
	g.no(err)
	t.Cleanup(func() {
		if p := g.broker.Process(); p != nil && p.Ended() == nil {
			if err := g.broker.Stop(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Logf("the broker's log:\n\t%s", strings.Join(g.broker.Log().Lines(0), "\n\t"))
		}
		if err := g.broker.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, text := range files {
		g.no(g.broker.WriteFile(name, []byte(strings.ReplaceAll(text, "{dir}", g.broker.Dir))))
	}
	g.no(g.broker.Start())
	return g
}

// subscribe asks for a subscription and returns the broker's answer, 0x80 or above for a refusal.
func (g *gate) subscribe(c *client, filter string) byte {
	g.Helper()
	switch c := c.Client.(type) {
	case *device.V5:
		suback, err := c.Paho.Subscribe(g.limit(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
		if suback == nil {
			g.Fatalf("subscribing to %q: %v", filter, err)
		}
		return suback.Reasons[0]
	case *device.V3:
		token := c.Paho.Subscribe(filter, 1, nil).(*mqtt.SubscribeToken)
		select {
		case <-token.Done():
			for _, granted := range token.Result() { // the key of a shared one is without $share
				return granted
			}
		case <-g.limit().Done():
			g.Fatalf("subscribing to %q: no answer", filter)
		}
	}
	panic("neither version of MQTT")
}

// refuseSubscription subscribes a device to what it may not read.
func (g *gate) refuseSubscription(c *client, filter string) {
	g.Helper()
	g.refused = append(g.refused, delivery{topic: filter, what: "subscription"})
	mark := g.broker.Log().Mark()
	want := map[protocol]byte{mqtt5: 0x87, mqtt311: 0x80}[c.protocol]
	if got := g.subscribe(c, filter); got != want {
		g.Errorf("%s subscribes to %q over %v: 0x%02x, want 0x%02x", c.username, filter, c.protocol, got, want)
	}
	line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
	g.no(err)
	if got := fields(line); got["reason"] != "forbidden_topic" || got["topic"] != filter || got["device"] != c.username {
		g.Errorf("%s subscribes to %q; the log says: %s", c.username, filter, line)
	}
}
