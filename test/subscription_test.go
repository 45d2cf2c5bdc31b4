package test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// many is how many topics a device may be subscribed to.
const many = 16

// subscriber is a device that subscribes over a session of its own.
type subscriber struct {
	*exchange
	packetID uint16
}

func (g *gate) subscriber(d *device.Device, p protocol, clientID string, clean bool) *subscriber {
	g.Helper()
	return &subscriber{exchange: g.open(d, p, clientID, clean)}
}

// subscribe sends one SUBSCRIBE with all the topics and returns the codes of the SUBACK. MQTT 3.1.1's failure, 0x80, is
// returned as MQTT 5's.
func (s *subscriber) subscribe(topics ...string) (codes []byte) {
	s.Helper()
	s.packetID++
	if s.v5 != nil {
		packet := &packets5.Subscribe{PacketID: s.packetID, Properties: &packets5.Properties{}}
		for _, topic := range topics {
			packet.Subscriptions = append(packet.Subscriptions, packets5.SubOptions{Topic: topic, QoS: 1})
		}
		s.no(s.v5.Send(s.limit(), packet))
		for {
			next, err := s.v5.Next(s.limit())
			s.no(err)
			if suback, ok := next.Content.(*packets5.Suback); ok {
				return suback.Reasons
			}
		}
	}
	for _, code := range s.subscribe3(topics) {
		if code == 0x80 {
			code = device.NotAuthorized
		}
		codes = append(codes, code)
	}
	return codes
}

func (s *subscriber) subscribe3(topics []string) []byte {
	s.Helper()
	packet := packets3.NewControlPacket(packets3.Subscribe).(*packets3.SubscribePacket)
	packet.MessageID, packet.Topics = s.packetID, topics
	for range topics {
		packet.Qoss = append(packet.Qoss, 1)
	}
	s.no(s.v3.Send(s.limit(), packet))
	for {
		next, err := s.v3.Next(s.limit())
		s.no(err)
		if suback, ok := next.(*packets3.SubackPacket); ok {
			return suback.ReturnCodes
		}
	}
}

// unsubscribe returns the code of the UNSUBACK; MQTT 3.1.1 has none.
func (s *subscriber) unsubscribe(topic string) byte {
	s.Helper()
	s.packetID++
	if s.v5 == nil {
		packet := packets3.NewControlPacket(packets3.Unsubscribe).(*packets3.UnsubscribePacket)
		packet.MessageID, packet.Topics = s.packetID, []string{topic}
		s.no(s.v3.Send(s.limit(), packet))
		for {
			next, err := s.v3.Next(s.limit())
			s.no(err)
			if _, ok := next.(*packets3.UnsubackPacket); ok {
				return device.Success
			}
		}
	}
	s.no(s.v5.Send(s.limit(), &packets5.Unsubscribe{PacketID: s.packetID, Topics: []string{topic}, Properties: &packets5.Properties{}}))
	for {
		next, err := s.v5.Next(s.limit())
		s.no(err)
		if unsuback, ok := next.Content.(*packets5.Unsuback); ok {
			return unsuback.Reasons[0]
		}
	}
}

// want subscribes to each topic by itself; all must be granted, or all refused with a line in the log that says why.
func (s *subscriber) want(granted bool, why string, topics ...string) {
	s.Helper()
	for _, topic := range topics {
		mark := s.broker.Log().Mark()
		code := s.subscribe(topic)[0]
		if (code == 1) != granted {
			s.Errorf("%v, client %s: %.80q: 0x%02x, granted should be %v", s.protocol, s.clientID, topic, code, granted)
			return
		}
		if !granted {
			line, err := s.broker.WaitLog(s.limit(), mark, broker.Contains("bouncer: refused "))
			s.no(err)
			if !strings.Contains(line, why) {
				s.Errorf("%.80q: the log says %s, want %q", topic, line, why)
			}
		}
	}
}

// below names topics below a device's response topic.
func below(d *device.Device, from, to int) (topics []string) {
	for i := from; i < to; i++ {
		topics = append(topics, fmt.Sprint(d.ResponseTopic(), "/", i))
	}
	return topics
}

// TestSubscriptionsAreBounded: 16 topics for each device, over all its sessions; what is refused does not end the
// connection, what ends makes room.
func TestSubscriptionsAreBounded(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}, Persistence: true})
	const full = "subscribed to 16 topics already"
	for _, p := range bothProtocols {
		g.sub(p.String(), func(g *gate) {
			d := g.device("sensor_001")
			lasting := g.subscriber(d, p, "lasting "+p.String(), false)
			lasting.want(true, "", below(d, 0, many/2)...)
			// One packet with more than there is room for: the first ones have it.
			short := g.subscriber(d, p, "short "+p.String(), true)
			for i, code := range short.subscribe(below(d, many/2, many+4)...) {
				if (code == 1) != (i < many/2) {
					g.Errorf("topic %d of one SUBSCRIBE: 0x%02x", i, code)
				}
			}
			short.want(false, full, d.ResponseTopic())
			lasting.want(false, full, d.CommandTopic())
			// Repeating is free, in either session; another device has room of its own.
			lasting.want(true, "", below(d, 0, many)...)
			two := g.subscriber(g.device("sensor_002"), p, "two "+p.String(), true)
			two.want(true, "", below(two.device, 0, many)...)
			two.cut()
			// A session that lasts keeps what it has.
			lasting.cut()
			lasting = g.subscriber(d, p, lasting.clientID, false)
			for i := range many / 2 {
				lasting.unsubscribe(below(d, i+many/2, i+many/2+1)[0]) // of those that the other session has too
			}
			lasting.want(false, full, d.ResponseTopic())
			if code := lasting.unsubscribe(below(d, 0, 1)[0]); code != device.Success {
				g.Errorf("UNSUBSCRIBE: 0x%02x", code)
			}
			lasting.want(true, "", d.ResponseTopic())
			lasting.want(false, full, below(d, 0, 1)...)
			// One that ends with its connection gives all back.
			mark := g.broker.Log().Mark()
			short.cut()
			_, err := g.broker.WaitLog(g.limit(), mark, broker.Matches("Client short .* (closed its connection|disconnected)"))
			g.no(err)
			eventually(g.T, "room for 8 topics", func() bool {
				fresh := g.subscriber(d, p, "fresh "+p.String(), true)
				defer fresh.cut()
				codes := fresh.subscribe(below(d, 100, 100+many/2)...)
				return codes[len(codes)-1] == 1
			})
			g.subscriber(d, p, lasting.clientID, true).cut()
		})
	}
}

// TestDeepSubscriptions: four levels, 256 bytes.
func TestDeepSubscriptions(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.device("sensor_001")
	for _, p := range bothProtocols {
		s := g.subscriber(d, p, "client", true)
		s.want(true, "", d.ResponseTopic()+"/a/b/c/d", d.ResponseTopic()+"/"+strings.Repeat("x", 255-len(d.ResponseTopic())))
		s.want(false, "more than 4 levels", d.ResponseTopic()+"/a/b/c/d/e", d.ResponseTopic()+strings.Repeat("/a", 190))
		s.want(false, "longer than 256 bytes", d.ResponseTopic()+"/"+strings.Repeat("x", 256-len(d.ResponseTopic())))
		s.cut()
	}
}

// TestDisabledDevicesDoNotSubscribe: neither anew nor by what waits for them. Their sessions keep what they have, for the
// time when they are enabled again.
func TestDisabledDevicesDoNotSubscribe(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.device("sensor_001")
	s := g.subscriber(d, mqtt5, "client", false)
	s.want(true, "", d.ResponseTopic())
	g.disable("sensor_001", true)
	if _, err := s.v5.Next(g.limit()); err != nil {
		g.Logf("disconnected: %v", err)
	}
	s = g.subscriber(d, mqtt5, "client", false)
	s.want(false, "reason=disabled", d.ResponseTopic(), d.CommandTopic())
	g.disable("sensor_001", false)
	c := &client{Device: d, protocol: mqtt5, username: d.ID}
	var err error
	c.Client, err = d.ConnectV5(g.limit(), func(c *paho.Connect) { c.ClientID, c.CleanStart = "client", false })
	g.no(err)
	g.accept(c, 1, d.Sign("22"))
	_, err = c.Inbox().WaitCount(g.limit(), d.ResponseTopic(), 1)
	g.no(err)
	g.no(c.Close())
}

// disable disables or enables a device, and waits until that is in force.
func (g *gate) disable(id string, disabled bool) {
	g.Helper()
	mark := g.broker.Log().Mark()
	g.setDisabled(id, disabled)
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed "))
	g.no(err)
}

// TestSubscriptionsOverRestart: what the broker restores counts, and repeating it is free.
func TestSubscriptionsOverRestart(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, Persistence: true})
	d := g.device("sensor_001")
	for _, p := range bothProtocols {
		s := g.subscriber(d, p, "client", false)
		s.want(true, "", below(d, 0, many)...)
		g.no(g.broker.Stop())
		g.no(g.broker.Start())
		s = g.subscriber(d, p, "client", false)
		s.want(true, "", below(d, 0, many)...)
		s.want(false, "subscribed to 16 topics already", d.ResponseTopic())
		s.unsubscribe(below(d, 0, 1)[0])
		s.want(true, "", d.ResponseTopic())
		g.no(g.broker.Stop())
		g.no(g.broker.Start())
		s = g.subscriber(d, p, "client", false)
		// One might be a repetition; the broker's list tells after it that it was not.
		granted := 0
		for _, code := range s.subscribe(below(d, 100, 100+many)...) {
			if code == 1 {
				granted++
			}
		}
		if granted > 1 {
			g.Errorf("%v: %d topics beyond those that were restored", p, granted)
		}
		g.subscriber(d, p, "client", true).cut()
	}
}

// TestOlderSubscriptions has subscriptions that were made when their client was allowed to, and sessions taken over from
// another device: what is delivered is decided anew each time.
func TestOlderSubscriptions(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.watch()
	one := g.connect(g.device("sensor_001"), mqtt5)
	late := g.connect(g.device("late"), mqtt5)
	for _, filter := range []string{"#", "device/+/data", "device/sensor_001/response", "$share/group/#"} {
		g.no(late.Subscribe(g.limit(), filter, 1))
	}
	g.leaveSubscribed("absent", "#")
	before := one.Sign(`"before"`)
	g.accept(one, 1, before)
	_, err := late.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, before.Bytes) })
	g.no(err)

	for _, id := range []string{"late", "absent"} {
		mark := g.broker.Log().Mark()
		_, err := g.broker.AddDevice(id)
		g.no(err)
		_, err = g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed added=1 "))
		g.no(err)
	}
	seen := len(late.Inbox().All())
	after := one.Sign(`"after"`)
	g.accept(one, 1, after)
	g.no(late.Subscribe(g.limit(), late.ResponseTopic(), 1))
	g.accept(late, 1, late.Sign(`"own"`))
	_, err = late.Inbox().WaitCount(g.limit(), late.ResponseTopic(), 1)
	g.no(err)
	for _, r := range late.Inbox().All()[seen:] {
		if r.Topic != late.ResponseTopic() {
			g.Errorf("a device got on %q by an older subscription: %q", r.Topic, r.Payload)
		}
	}
	// What waited for a client that has become a device.
	absent := g.resume("absent")
	g.no(absent.Subscribe(g.limit(), "device/absent/response", 1))
	d := g.device("absent")
	g.accept(&client{Client: absent, Device: d, protocol: mqtt5, username: d.ID}, 1, d.Sign(`"own"`))
	_, err = absent.Inbox().WaitCount(g.limit(), d.ResponseTopic(), 1)
	g.no(err)
	for _, r := range absent.Inbox().All() {
		if r.Topic != d.ResponseTopic() {
			g.Errorf("a device got on %q what waited for it: %q", r.Topic, r.Payload)
		}
	}

	// A session with its subscription to another device's responses.
	owner := g.open(g.device("sensor_001"), mqtt5, "session", false)
	g.no(owner.v5.Send(g.limit(), &packets5.Subscribe{
		PacketID: 1, Properties: &packets5.Properties{},
		Subscriptions: []packets5.SubOptions{{Topic: owner.device.ResponseTopic(), QoS: 1}},
	}))
	_, err = owner.v5.Next(g.limit())
	g.no(err)
	owner.cut()
	thief, err := g.device("sensor_002").ConnectV5(g.limit(), func(c *paho.Connect) { c.ClientID, c.CleanStart = "session", false })
	g.no(err)
	g.Cleanup(func() { _ = thief.Close() })
	g.no(one.Subscribe(g.limit(), one.ResponseTopic(), 1))
	g.accept(one, 1, one.Sign("22"))
	_, err = one.Inbox().WaitCount(g.limit(), one.ResponseTopic(), 1)
	g.no(err)
	g.no(thief.Subscribe(g.limit(), "device/sensor_002/response", 1))
	two := g.device("sensor_002")
	g.accept(&client{Client: thief, Device: two, protocol: mqtt5, username: two.ID}, 1, two.Sign("22"))
	_, err = thief.Inbox().WaitCount(g.limit(), two.ResponseTopic(), 1)
	g.no(err)
	for _, r := range thief.Inbox().All() {
		if r.Topic != two.ResponseTopic() {
			g.Errorf("a device got on %q by another's session: %q", r.Topic, r.Payload)
		}
	}
	g.nothingElse("sensor_001")
}
