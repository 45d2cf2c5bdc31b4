package test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// put publishes over MQTT 5 on a topic, retained or not, and waits for the PUBACK or PUBREC.
func (c *exchange) put(topic string, retain bool, p packet) device.Ack {
	c.Helper()
	ack, err := c.v5.Publish(c.limit(), &packets5.Publish{
		Topic: topic, QoS: p.qos, PacketID: p.id, Duplicate: p.dup, Retain: retain, Payload: p.Bytes,
	})
	c.no(err)
	return ack
}

// listener is a subscriber that tells what it has got, from its subscription on.
type listener struct {
	g *gate
	c *client
}

// listen subscribes to what devices publish.
func (g *gate) listen() listener {
	g.Helper()
	c := g.connect(g.device("dashboard"), mqtt5)
	for _, filter := range []string{"device/+/data", "alarm/+/raise"} {
		g.no(c.Subscribe(g.limit(), filter, 2))
	}
	return listener{g, c}
}

// got returns the payloads that came, those that were retained with an 'r' before them, when another device's message
// shows that there will be no more.
func (l listener) got() (payloads []string) {
	l.g.Helper()
	w := l.g.device("witness")
	last := w.Sign(`"last"`)
	if ack := l.g.publish(l.g.connect(w, mqtt5), w.DataTopic(), 1, last.Bytes); !ack.Accepted() {
		l.g.Fatalf("the witness: %v", ack)
	}
	_, err := l.c.Inbox().Wait(l.g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, last.Bytes) })
	l.g.no(err)
	for _, r := range l.c.Inbox().All() {
		if r.Topic == w.DataTopic() {
			continue
		}
		_, payload, _ := bytes.Cut(r.Payload, []byte(`"payload":`))
		payload, _, _ = bytes.Cut(payload, []byte(`,`))
		if r.Retain {
			payload = append([]byte("r"), payload...)
		}
		payloads = append(payloads, string(payload))
	}
	return payloads
}

func (g *gate) expectGot(what string, got []string, want ...string) {
	g.Helper()
	if !slices.Equal(got, want) {
		g.Errorf("%s: a subscriber got %q, want %q", what, got, want)
	}
}

// TestQoS2OverARestart has QoS 2 messages in every state when the broker ends, in good order or not, with its state saved
// or not, and the device go on in every way. Each has reached the subscribers when it was accepted, once, and nothing
// brings it out again.
func TestQoS2OverARestart(t *testing.T) {
	comebacks := []struct {
		name    string
		clean   bool
		refused string // the reason
		goOn    func(c *exchange, topic string, p packet) device.Ack
	}{
		{name: "PUBREL alone", goOn: func(c *exchange, _ string, p packet) device.Ack { c.release(p.id); return device.Ack{} }},
		{name: "DUP", goOn: func(c *exchange, topic string, p packet) device.Ack {
			p.dup = true
			ack := c.put(topic, false, p)
			c.release(p.id)
			return ack
		}},
		{name: "under another packet id", goOn: func(c *exchange, topic string, p packet) device.Ack {
			first := p.id
			p.id = 100
			ack := c.put(topic, false, p)
			c.release(100)
			c.release(first)
			return ack
		}},
		{name: "in a clean session", clean: true, goOn: func(c *exchange, topic string, p packet) device.Ack {
			ack := c.put(topic, false, p)
			c.release(p.id)
			return ack
		}},
		{name: "retained", refused: "replay", goOn: func(c *exchange, topic string, p packet) device.Ack { return c.put(topic, true, p) }},
		{name: "on another topic", refused: "replay", goOn: func(c *exchange, _ string, p packet) device.Ack {
			return c.put("alarm/sensor_001/raise", false, p)
		}},
		{name: "at QoS 1", refused: "replay", goOn: func(c *exchange, topic string, p packet) device.Ack {
			p.qos = 1
			return c.put(topic, false, p)
		}},
	}
	for _, end := range []string{"SIGTERM", "SIGKILL"} {
		for _, persistence := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, persistence %v", end, persistence), func(t *testing.T) {
				t.Parallel()
				conf := ""
				if persistence {
					conf = "autosave_interval 1\nautosave_on_changes true\n"
				}
				g := newGate(t, broker.Options{
					Devices: []string{"sensor_001", "witness"}, Persistence: persistence, Conf: conf,
					Settings: map[string]any{"publish.topics": []string{"device/+/data", "alarm/+/raise"}},
				})
				d := g.device("sensor_001")
				before := g.listen()
				var want []string
				inFlight := map[string]packet{}
				for _, released := range []bool{true, false} {
					for i, back := range comebacks {
						name := fmt.Sprintf("%s, released %v", back.name, released)
						c := g.open(d, mqtt5, name, false)
						p := packet{qos: 2, id: uint16(i + 1), Message: d.Sign(fmt.Sprintf("%q", fmt.Sprint(i, released)))}
						if ack := c.put(d.DataTopic(), false, p); ack.Code != device.Success {
							t.Fatalf("%s: %v", name, ack)
						}
						if released {
							c.release(p.id)
						}
						want = append(want, string(p.Payload))
						inFlight[name] = p
					}
				}
				// A retained message that waits for its release, and a newer one.
				older, newer := packet{qos: 2, id: 50, Message: d.Sign(`"older"`)}, packet{qos: 1, id: 51, Message: d.Sign(`"newer"`)}
				c := g.open(d, mqtt5, "retaining", false)
				c.put(d.DataTopic(), true, older)
				c.put(d.DataTopic(), true, newer)
				g.expectGot("before", before.got(), append(want, `"older"`, `"newer"`)...)

				if end == "SIGTERM" {
					g.no(g.broker.Stop())
				} else {
					g.no(g.broker.Kill())
				}
				g.no(g.broker.Start())
				after := g.listen()
				for _, released := range []bool{true, false} {
					for _, back := range comebacks {
						name := fmt.Sprintf("%s, released %v", back.name, released)
						c := g.open(d, mqtt5, name, back.clean)
						ack := back.goOn(c, d.DataTopic(), inFlight[name])
						if want := back.refused == ""; ack.Accepted() != want {
							t.Errorf("%s: %v", name, ack)
						}
					}
				}
				c = g.open(d, mqtt5, "retaining", false)
				c.release(older.id)
				older.dup = true
				if ack := c.put(d.DataTopic(), true, older); ack.Code != device.Success {
					t.Errorf("the older retained message once more: %v", ack)
				}
				c.release(older.id)
				got := after.got()
				if end == "SIGTERM" && persistence {
					g.expectGot("afterwards", got, `r"newer"`)
				} else if len(got) > 0 && !slices.Equal(got, []string{`r"newer"`}) { // which need not have been saved
					t.Errorf("afterwards a subscriber got %q", got)
				}
				late := g.listen().got()
				if !slices.Equal(got, late) {
					t.Errorf("retained is %q, and was %q", late, got)
				}
			})
		}
	}
}

// TestQoS2Retained: what is retained is what was accepted last, whenever a QoS 2 message is released or comes again, and
// whether anybody listened.
func TestQoS2Retained(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	d := g.device("sensor_001")
	n := 0
	fresh := func(qos byte) packet {
		n++
		return packet{qos: qos, id: uint16(n), Message: d.Sign(fmt.Sprint(n))}
	}
	retained := func(what string, p packet) {
		t.Helper()
		g.expectGot(what, g.listen().got(), "r"+string(p.Payload))
	}
	for _, qos := range []byte{0, 1, 2} {
		c := g.open(d, mqtt5, "client", false)
		older, newer := fresh(2), fresh(qos)
		c.put(d.DataTopic(), true, older)
		c.put(d.DataTopic(), true, newer)
		c.release(older.id)
		if qos == 2 {
			c.release(newer.id)
		}
		retained(fmt.Sprintf("released behind a newer one at QoS %d", qos), newer)
		for _, clean := range []bool{false, true} {
			c = c.again(clean, true)
			older.dup = !clean
			if ack := c.put(d.DataTopic(), true, older); ack.Code != device.Success {
				t.Errorf("a redelivery: %v", ack)
			}
			c.release(older.id)
			retained(fmt.Sprintf("released and sent again, clean %v", clean), newer)
		}
		c.cut()
	}
}

// TestQoS2Order sends messages of every QoS in one piece. Subscribers get them in this order, and the last one is retained.
func TestQoS2Order(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	d := g.device("sensor_001")
	for _, retain := range []bool{false, true} {
		for _, order := range [][]byte{{2, 1, 0}, {1, 2, 2, 0}, {0, 2, 1, 2}, {2, 0, 1, 2, 1}} {
			l := g.listen()
			var want []string
			var text bytes.Buffer
			for i, qos := range order {
				m := d.Sign(fmt.Sprintf("%q", fmt.Sprint(order[:i+1], retain)))
				p := &packets5.Publish{Topic: d.DataTopic(), QoS: qos, Retain: retain, Payload: m.Bytes, Properties: &packets5.Properties{}}
				if qos > 0 {
					p.PacketID = uint16(i + 1)
				}
				_, err := p.WriteTo(&text)
				g.no(err)
				want = append(want, string(m.Payload))
			}
			c := g.open(d, mqtt5, fmt.Sprint(order, retain), true)
			g.no(c.v5.SendBytes(g.limit(), text.Bytes()))
			for acks := 0; acks < len(order)-bytes.Count(order, []byte{0}); acks++ {
				_, err := c.v5.Next(g.limit())
				g.no(err)
			}
			got := l.got()
			if len(got) > 0 && got[0][0] == 'r' {
				got = got[1:] // of the order before
			}
			g.expectGot(fmt.Sprintf("QoS %v, retain %v", order, retain), got, want...)
			if retain {
				g.expectGot(fmt.Sprintf("retained after QoS %v", order), g.listen().got(), "r"+want[len(want)-1])
			}
		}
	}
}

// TestQoS2Properties: subscribers get a QoS 2 message with the properties that it was published with, on a topic by its
// name or by its alias.
func TestQoS2Properties(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	d := g.device("sensor_001")
	l := g.listen()
	c := g.open(d, mqtt5, "client", true)
	for i, topic := range []string{d.DataTopic(), ""} {
		for qos := byte(1); qos <= 2; qos++ {
			m := d.Sign("22")
			p := &packets5.Publish{Topic: topic, QoS: qos, PacketID: uint16(10*i) + uint16(qos), Payload: m.Bytes, Properties: &packets5.Properties{
				ContentType: "application/json", ResponseTopic: "device/sensor_001/response/x", CorrelationData: []byte{0, 1, 2},
				PayloadFormat: ptr[byte](1), TopicAlias: ptr[uint16](7),
				User: []packets5.User{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: ""}},
			}}
			ack, err := c.v5.Publish(g.limit(), p)
			g.no(err)
			if ack.Code != device.Success {
				t.Fatalf("QoS %d: %v", qos, ack)
			}
			r, err := l.c.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, m.Bytes) })
			g.no(err)
			got := r.Properties
			if r.Topic != d.DataTopic() || r.QoS != qos || got == nil || got.ContentType != "application/json" ||
				got.ResponseTopic != "device/sensor_001/response/x" || !bytes.Equal(got.CorrelationData, []byte{0, 1, 2}) ||
				got.PayloadFormat == nil || *got.PayloadFormat != 1 || len(got.User) != 3 {
				t.Errorf("QoS %d on %q: a subscriber got %+v with %+v", qos, topic, r, got)
				continue
			}
			if u := got.User; u[0].Key != "b" || u[0].Value != "1" || u[1].Key != "a" || u[1].Value != "2" || u[2].Key != "b" || u[2].Value != "" {
				t.Errorf("QoS %d on %q: the user properties are %+v", qos, topic, u)
			}
		}
	}
}

// TestSinkOfShortTopics has gated topics that are shorter than the sink's name: what is swallowed reaches nobody there
// either.
func TestSinkOfShortTopics(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices: []string{"s", "witness"}, Settings: map[string]any{"acl.others": "allow", "publish.topics": []string{"+", "d/+", "device/+/data"}},
	})
	d := g.device("s")
	spy := g.connect(g.device("spy"), mqtt5)
	for _, filter := range []string{"#", "+/#", "$bouncer/#", "$bo/#", "+/+"} {
		g.no(spy.Subscribe(g.limit(), filter, 2))
	}
	for _, filter := range []string{"$", "$b", "$bo", "$bounce", "$bouncer", "$bouncer/redelivered"} {
		if err := spy.Subscribe(g.limit(), filter, 2); err == nil {
			t.Errorf("a subscription to %s was granted", filter)
		}
	}
	for i, topic := range []string{"s", "d/s"} {
		for qos := byte(1); qos <= 2; qos++ {
			p := packet{qos: qos, id: uint16(10*i) + uint16(qos), Message: d.Sign("22")}
			c := g.open(d, mqtt5, "client", false)
			for range 3 {
				if ack := c.put(topic, true, p); !ack.Accepted() {
					t.Errorf("%s: %v", topic, ack)
				}
				if qos == 2 {
					c.release(p.id)
				}
				c = c.again(false, true)
			}
			c.cut()
			_, err := spy.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, p.Bytes) })
			g.no(err)
			var topics []string
			last := g.device("witness").Sign("1")
			g.publish(g.connect(g.device("witness"), mqtt5), "device/witness/data", 1, last.Bytes)
			_, err = spy.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, last.Bytes) })
			g.no(err)
			for _, r := range spy.Inbox().All() {
				if bytes.Equal(r.Payload, p.Bytes) {
					topics = append(topics, r.Topic)
				}
			}
			// Overlapping subscriptions of one client are one delivery or several, by the broker's choice.
			if topics = slices.Compact(topics); !slices.Equal(topics, []string{topic}) || len(spy.Inbox().All()) > 40 {
				t.Errorf("%s at QoS %d came out on %q", topic, qos, topics)
			}
		}
	}
}
