package test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestQoS2OverARestart has QoS 2 messages in every state when the broker ends, in good order or not, with its state saved
// or not, and the device continue in every way. Each has reached the subscribers when it was accepted, once, and nothing
// brings it out again.
func TestQoS2OverARestart(t *testing.T) {
	comebacks := []struct {
		name    string
		clean   bool
		refused string // the reason
		goOn    func(c *harness.Exchange, topic string, p harness.Packet) device.Ack
	}{
		{name: "PUBREL alone", goOn: func(c *harness.Exchange, _ string, p harness.Packet) device.Ack { c.Release(p.ID); return device.Ack{} }},
		{name: "DUP", goOn: func(c *harness.Exchange, topic string, p harness.Packet) device.Ack {
			p.Dup = true
			ack := c.Put(topic, false, p)
			c.Release(p.ID)
			return ack
		}},
		{name: "under another packet id", goOn: func(c *harness.Exchange, topic string, p harness.Packet) device.Ack {
			first := p.ID
			p.ID = 100
			ack := c.Put(topic, false, p)
			c.Release(100)
			c.Release(first)
			return ack
		}},
		{name: "in a clean session", clean: true, goOn: func(c *harness.Exchange, topic string, p harness.Packet) device.Ack {
			ack := c.Put(topic, false, p)
			c.Release(p.ID)
			return ack
		}},
		{name: "retained", refused: "replay", goOn: func(c *harness.Exchange, topic string, p harness.Packet) device.Ack { return c.Put(topic, true, p) }},
		{name: "on another topic", refused: "replay", goOn: func(c *harness.Exchange, _ string, p harness.Packet) device.Ack {
			return c.Put("alarm/sensor_001/raise", false, p)
		}},
		{name: "at QoS 1", refused: "replay", goOn: func(c *harness.Exchange, topic string, p harness.Packet) device.Ack {
			p.QoS = 1
			return c.Put(topic, false, p)
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
				g := harness.New(t, broker.Options{
					Devices: []string{"sensor_001", "witness"}, Persistence: persistence, Conf: conf,
					Settings: map[string]any{"publish.topics": []string{"device/+/data", "alarm/+/raise"}},
				})
				d := g.Device("sensor_001")
				before := g.Listen()
				var want []string
				inFlight := map[string]harness.Packet{}
				for _, released := range []bool{true, false} {
					for i, back := range comebacks {
						name := fmt.Sprintf("%s, released %v", back.name, released)
						c := g.Open(d, harness.MQTT5, name, false)
						p := harness.Packet{QoS: 2, ID: uint16(i + 1), Message: d.Sign(fmt.Sprintf("%q", fmt.Sprint(i, released)))}
						if ack := c.Put(d.DataTopic(), false, p); ack.Code != device.Success {
							t.Fatalf("%s: %v", name, ack)
						}
						if released {
							c.Release(p.ID)
						}
						want = append(want, string(p.Payload))
						inFlight[name] = p
					}
				}
				// A retained message that waits for its release, and a newer one.
				older, newer := harness.Packet{QoS: 2, ID: 50, Message: d.Sign(`"older"`)}, harness.Packet{QoS: 1, ID: 51, Message: d.Sign(`"newer"`)}
				c := g.Open(d, harness.MQTT5, "retaining", false)
				c.Put(d.DataTopic(), true, older)
				c.Put(d.DataTopic(), true, newer)
				g.ExpectGot("before", before.Got(), append(want, `"older"`, `"newer"`)...)

				if end == "SIGTERM" {
					g.Must(g.Broker.Stop())
				} else {
					g.Must(g.Broker.Kill())
				}
				g.Must(g.Broker.Start())
				after := g.Listen()
				for _, released := range []bool{true, false} {
					for _, back := range comebacks {
						name := fmt.Sprintf("%s, released %v", back.name, released)
						c := g.Open(d, harness.MQTT5, name, back.clean)
						ack := back.goOn(c, d.DataTopic(), inFlight[name])
						if want := back.refused == ""; ack.Accepted() != want {
							t.Errorf("%s: %v", name, ack)
						}
					}
				}
				c = g.Open(d, harness.MQTT5, "retaining", false)
				c.Release(older.ID)
				older.Dup = true
				if ack := c.Put(d.DataTopic(), true, older); ack.Code != device.Success {
					t.Errorf("the older retained message once more: %v", ack)
				}
				c.Release(older.ID)
				got := after.Got()
				if end == "SIGTERM" && persistence {
					g.ExpectGot("afterwards", got, `r"newer"`)
				} else if len(got) > 0 && !slices.Equal(got, []string{`r"newer"`}) { // which need not have been saved
					t.Errorf("afterwards a subscriber got %q", got)
				}
				late := g.Listen().Got()
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
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	d := g.Device("sensor_001")
	n := 0
	fresh := func(qos byte) harness.Packet {
		n++
		return harness.Packet{QoS: qos, ID: uint16(n), Message: d.Sign(fmt.Sprint(n))}
	}
	retained := func(what string, p harness.Packet) {
		t.Helper()
		g.ExpectGot(what, g.Listen().Got(), "r"+string(p.Payload))
	}
	for _, qos := range []byte{0, 1, 2} {
		c := g.Open(d, harness.MQTT5, "client", false)
		older, newer := fresh(2), fresh(qos)
		c.Put(d.DataTopic(), true, older)
		c.Put(d.DataTopic(), true, newer)
		c.Release(older.ID)
		if qos == 2 {
			c.Release(newer.ID)
		}
		retained(fmt.Sprintf("released behind a newer one at QoS %d", qos), newer)
		for _, clean := range []bool{false, true} {
			c = c.Again(clean, true)
			older.Dup = !clean
			if ack := c.Put(d.DataTopic(), true, older); ack.Code != device.Success {
				t.Errorf("a redelivery: %v", ack)
			}
			c.Release(older.ID)
			retained(fmt.Sprintf("released and sent again, clean %v", clean), newer)
		}
		c.Cut()
	}
}

// TestQoS2Order sends messages of every QoS in one piece. Subscribers get them in this order, and the last one is retained.
func TestQoS2Order(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	d := g.Device("sensor_001")
	for _, retain := range []bool{false, true} {
		for _, order := range [][]byte{{2, 1, 0}, {1, 2, 2, 0}, {0, 2, 1, 2}, {2, 0, 1, 2, 1}} {
			l := g.Listen()
			var want []string
			var text bytes.Buffer
			for i, qos := range order {
				m := d.Sign(fmt.Sprintf("%q", fmt.Sprint(order[:i+1], retain)))
				p := &packets5.Publish{Topic: d.DataTopic(), QoS: qos, Retain: retain, Payload: m.Bytes, Properties: &packets5.Properties{}}
				if qos > 0 {
					p.PacketID = uint16(i + 1)
				}
				_, err := p.WriteTo(&text)
				g.Must(err)
				want = append(want, string(m.Payload))
			}
			c := g.Open(d, harness.MQTT5, fmt.Sprint(order, retain), true)
			g.Must(c.V5.SendBytes(g.Limit(), text.Bytes()))
			for acks := 0; acks < len(order)-bytes.Count(order, []byte{0}); acks++ {
				_, err := c.V5.Next(g.Limit())
				g.Must(err)
			}
			got := l.Got()
			if len(got) > 0 && got[0][0] == 'r' {
				got = got[1:] // of the order before
			}
			g.ExpectGot(fmt.Sprintf("QoS %v, retain %v", order, retain), got, want...)
			if retain {
				g.ExpectGot(fmt.Sprintf("retained after QoS %v", order), g.Listen().Got(), "r"+want[len(want)-1])
			}
		}
	}
}

// TestQoS2Properties: subscribers get a QoS 2 message with the properties that it was published with, on a topic by its
// name or by its alias.
func TestQoS2Properties(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
	d := g.Device("sensor_001")
	l := g.Listen()
	c := g.Open(d, harness.MQTT5, "client", true)
	for i, topic := range []string{d.DataTopic(), ""} {
		for qos := byte(1); qos <= 2; qos++ {
			m := d.Sign("22")
			p := &packets5.Publish{Topic: topic, QoS: qos, PacketID: uint16(10*i) + uint16(qos), Payload: m.Bytes, Properties: &packets5.Properties{
				ContentType: "application/json", ResponseTopic: "device/sensor_001/response/x", CorrelationData: []byte{0, 1, 2},
				PayloadFormat: new(byte(1)), TopicAlias: new(uint16(7)),
				User: []packets5.User{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: ""}},
			}}
			ack, err := c.V5.Publish(g.Limit(), p)
			g.Must(err)
			if ack.Code != device.Success {
				t.Fatalf("QoS %d: %v", qos, ack)
			}
			r, err := l.C.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, m.Bytes) })
			g.Must(err)
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

// TestSinkOfShortTopics has gated topics that are shorter than the sink's name: what is swallowed reaches no subscriber there
// either.
func TestSinkOfShortTopics(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices: []string{"s", "witness"}, Settings: map[string]any{"acl.others": "allow", "publish.topics": []string{"+", "d/+", "device/+/data"}},
	})
	d := g.Device("s")
	spy := g.Connect(g.Device("spy"), harness.MQTT5)
	for _, filter := range []string{"#", "+/#", "$bouncer/#", "$bo/#", "+/+"} {
		g.Must(spy.Subscribe(g.Limit(), filter, 2))
	}
	for _, filter := range []string{"$", "$b", "$bo", "$bounce", "$bouncer", "$bouncer/redelivered"} {
		if err := spy.Subscribe(g.Limit(), filter, 2); err == nil {
			t.Errorf("a subscription to %s was granted", filter)
		}
	}
	for i, topic := range []string{"s", "d/s"} {
		for qos := byte(1); qos <= 2; qos++ {
			p := harness.Packet{QoS: qos, ID: uint16(10*i) + uint16(qos), Message: d.Sign("22")}
			c := g.Open(d, harness.MQTT5, "client", false)
			for range 3 {
				if ack := c.Put(topic, true, p); !ack.Accepted() {
					t.Errorf("%s: %v", topic, ack)
				}
				if qos == 2 {
					c.Release(p.ID)
				}
				c = c.Again(false, true)
			}
			c.Cut()
			_, err := spy.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, p.Bytes) })
			g.Must(err)
			var topics []string
			last := g.Device("witness").Sign("1")
			g.Publish(g.Connect(g.Device("witness"), harness.MQTT5), "device/witness/data", 1, last.Bytes)
			_, err = spy.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, last.Bytes) })
			g.Must(err)
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
