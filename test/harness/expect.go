package harness

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// A Delivery is a message on a topic.
type Delivery struct {
	device.Message
	Topic string
	what  string // for the failure's text
}

// Accept publishes a message to the device's topic and waits until it has reached the backend and, if there is one, the
// monitor, byte for byte.
func (g *Gateway) Accept(c *Client, qos byte, m device.Message) *backend.Request {
	g.Helper()
	topic := "device/" + m.DeviceID + "/data"
	g.Expect(topic, m)
	ack := g.Publish(c, topic, qos, m.Bytes)
	if !ack.Accepted() {
		g.Fatalf("a good message, QoS %d over %v: got %v", qos, c.Protocol, ack)
	}
	if g.Monitor != nil {
		got := g.Delivered(topic, m.Bytes)
		if got.QoS != qos || got.Retain || got.Duplicate {
			g.Errorf("a publish at QoS %d reached the monitor with QoS %d, retain %v, duplicate %v", qos, got.QoS, got.Retain, got.Duplicate)
		}
		relayed := g.tickless && qos == 1 && ack.Code == device.NoMatchingSubscribers
		if qos > 0 && ack.Code != device.Success && !relayed {
			g.Errorf("a message that has a subscriber: got %v", ack)
		}
	}
	return g.Posted(m)
}

// Expect notes that a message, published in another way than by Accept, is to be delivered. Safe for concurrent use.
func (g *Gateway) Expect(topic string, m device.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accepted = append(g.accepted, Delivery{m, topic, "accepted"})
}

// ExpectRefusal notes a message, published in another way than by Refuse, that is to be refused. Safe for concurrent use.
func (g *Gateway) ExpectRefusal(topic string, m device.Message, what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = append(g.refused, Delivery{m, topic, what})
}

// AllAccepted returns what Accept and Expect have noted.
func (g *Gateway) AllAccepted() []Delivery {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.accepted)
}

// Posted waits until the backend has a message and checks the body. Safe for concurrent use.
func (g *Gateway) Posted(m device.Message) *backend.Request {
	g.Helper()
	r, err := g.Backend.WaitFor(g.Limit(), func(r *backend.Request) bool {
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

// Delivered waits until the monitor has a message.
func (g *Gateway) Delivered(topic string, message []byte) device.Received {
	g.Helper()
	got, err := g.Monitor.Inbox().Wait(g.Limit(), func(r device.Received) bool {
		return r.Topic == topic && bytes.Equal(r.Payload, message)
	})
	if err != nil {
		g.Fatalf("on %q: %v", topic, err)
	}
	return got
}

// Refuse publishes a message that is to be refused: with the reason code where there is one, one line in the log with
// exactly this reason and this client's user name, and the connection left alone. That it is not delivered is for
// NothingElse to find out. One gateway has room for a hundred refusals in quick succession: the plugin then writes a line for
// some of them only.
func (g *Gateway) Refuse(c *Client, topic string, qos byte, m device.Message, reason string) {
	g.Helper()
	what := fmt.Sprintf("refused as %s, QoS %d over %v", reason, qos, c.Protocol)
	g.ExpectRefusal(topic, m, what)

	mark := g.Broker.Log().Mark()
	ack := g.Publish(c, topic, qos, m.Bytes)
	if ack.Code != c.Protocol.Refusal(qos) {
		g.Errorf("%s: acknowledged with %v, want 0x%02x", what, ack, c.Protocol.Refusal(qos))
	}
	line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device="))
	g.Must(err)
	got := Fields(line)
	if got["reason"] != reason || got["topic"] != topic || got["device"] != c.Username {
		g.Errorf("%s on topic %q by %q: the log says: %s", what, topic, c.Username, line)
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
	// Another packet there and back shows that the connection still works. A client with a device's user name may subscribe to
	// that device's responses alone.
	topic = c.ResponseTopic()
	if c.Username != "" {
		topic = "device/" + c.Username + "/response"
	}
	if reason == "disabled" || c.Disabled { // which may not
		g.ExpectRefusal(topic, device.Message{}, "subscription")
		if code := g.Subscribe(c, topic); code < 0x80 {
			g.Errorf("%s: and may subscribe: 0x%02x", what, code)
		}
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device=", "topic="+topic, "reason=disabled"))
		g.Must(err)
		return
	}
	if err := c.Subscribe(g.Limit(), topic, 0); err != nil {
		g.Errorf("%s: the connection afterwards: %v", what, err)
	}
}

// Fields reads the key=value pairs of a log line of the plugin.
func Fields(line string) map[string]string {
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

// NothingElse ends the test of a gateway: the monitor and the backend must have got what was accepted, each message once, and
// nothing else. A last good message of the witness, which must be registered, tells when whatever was going to reach the
// monitor has done so; stopping the broker does the same for the backend. Responses are not looked at.
func (g *Gateway) NothingElse(witness string) {
	g.Helper()
	d := g.Device(witness)
	g.Accept(g.Connect(d, MQTT5), 1, d.Sign(`"nothing else"`))
	if g.Monitor != nil {
		g.NoMore("the monitor", g.UnexpectedPublishes())
	}
	g.Must(g.Broker.Stop())
	g.NoMore("the backend", g.UnexpectedRequests())

	refusals := g.Broker.Log().Find(0, broker.Contains("bouncer: refused device="))
	if len(refusals) != len(g.refused) {
		g.Errorf("%d lines of refusals for %d refused publishes:\n\t%s", len(refusals), len(g.refused), strings.Join(refusals, "\n\t"))
	}
}

// NoMore fails the test for each surprise.
func (g *Gateway) NoMore(who string, surprises []string) {
	g.Helper()
	for _, surprise := range surprises {
		g.Errorf("%s: %s", who, surprise)
	}
}

// UnexpectedPublishes compares what the monitor got on device/+/data with what was accepted.
func (g *Gateway) UnexpectedPublishes() (surprises []string) {
	left := slices.Clone(g.accepted)
	for _, r := range g.Monitor.Inbox().All() {
		levels := strings.Split(r.Topic, "/")
		if len(levels) != 3 || levels[0] != "device" || levels[2] != "data" {
			continue
		}
		same := func(d Delivery) bool { return d.Topic == r.Topic && bytes.Equal(d.Bytes, r.Payload) }
		if i := slices.IndexFunc(left, same); i >= 0 {
			left = slices.Delete(left, i, i+1)
			continue
		}
		surprises = append(surprises, fmt.Sprintf("got on %q: %.400q (%s)", r.Topic, r.Payload, g.origin(same)))
	}
	return append(surprises, Missing(left)...)
}

// UnexpectedRequests compares what the backend got with what was accepted.
func (g *Gateway) UnexpectedRequests() (surprises []string) {
	left := slices.Clone(g.accepted)
	for _, r := range g.Backend.Requests() {
		same := func(d Delivery) bool {
			return d.DeviceID == r.Device && strings.EqualFold(d.MessageID, r.MessageID()) && bytes.Equal(d.Payload, r.Body)
		}
		if i := slices.IndexFunc(left, same); i >= 0 {
			left = slices.Delete(left, i, i+1)
			continue
		}
		surprises = append(surprises, fmt.Sprintf("got %s %s %s: %.400q (%s)", r.Method, r.Path, r.MessageID(), r.Body, g.origin(same)))
	}
	return append(surprises, Missing(left)...)
}

// Missing describes messages that did not come.
func Missing(left []Delivery) (surprises []string) {
	for _, d := range left {
		surprises = append(surprises, fmt.Sprintf("did not get %s of %s: %.400q", d.MessageID, d.DeviceID, d.Payload))
	}
	return surprises
}

// origin says which message it was that should not have come.
func (g *Gateway) origin(same func(Delivery) bool) string {
	for _, d := range slices.Concat(g.refused, g.accepted) {
		if same(d) {
			return d.what
		}
	}
	return "unknown"
}

// RefuseSubscription subscribes a device to what it may not read.
func (g *Gateway) RefuseSubscription(c *Client, filter string) {
	g.Helper()
	g.ExpectRefusal(filter, device.Message{}, "subscription")
	mark := g.Broker.Log().Mark()
	want := map[Protocol]byte{MQTT5: 0x87, MQTT311: 0x80}[c.Protocol]
	if got := g.Subscribe(c, filter); got != want {
		g.Errorf("%s subscribes to %q over %v: 0x%02x, want 0x%02x", c.Username, filter, c.Protocol, got, want)
	}
	line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused "))
	g.Must(err)
	if got := Fields(line); got["reason"] != "forbidden_topic" || got["topic"] != filter || got["device"] != c.Username {
		g.Errorf("%s subscribes to %q; the log says: %s", c.Username, filter, line)
	}
}

// Response waits for the nth response of a client that has subscribed to its own.
func (g *Gateway) Response(c *Client, n int) device.Received {
	g.Helper()
	got, err := c.Inbox().WaitCount(g.Limit(), c.ResponseTopic(), n)
	if err != nil {
		g.Fatalf("%s: %v", c.ID, err)
	}
	return got[n-1]
}
