package test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// many is how many topics a device may be subscribed to.
const many = 16

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
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}, Persistence: true})
	const full = "subscribed to 16 topics already"
	for _, p := range harness.BothProtocols {
		g.Sub(p.String(), func(g *harness.Gateway) {
			d := g.Device("sensor_001")
			lasting := g.Subscriber(d, p, "lasting "+p.String(), false)
			lasting.Want(true, "", below(d, 0, many/2)...)
			// One packet with more than there is room for: the first ones have it.
			short := g.Subscriber(d, p, "short "+p.String(), true)
			for i, code := range short.Subscribe(below(d, many/2, many+4)...) {
				if (code == 1) != (i < many/2) {
					g.Errorf("topic %d of one SUBSCRIBE: 0x%02x", i, code)
				}
			}
			short.Want(false, full, d.ResponseTopic())
			lasting.Want(false, full, d.CommandTopic())
			// Repeating is free, in either session; another device has room of its own.
			lasting.Want(true, "", below(d, 0, many)...)
			two := g.Subscriber(g.Device("sensor_002"), p, "two "+p.String(), true)
			two.Want(true, "", below(two.Device, 0, many)...)
			two.Cut()
			// A session that lasts keeps what it has.
			lasting.Cut()
			lasting = g.Subscriber(d, p, lasting.ClientID, false)
			for i := range many / 2 {
				lasting.Unsubscribe(below(d, i+many/2, i+many/2+1)[0]) // of those that the other session has too
			}
			lasting.Want(false, full, d.ResponseTopic())
			if code := lasting.Unsubscribe(below(d, 0, 1)[0]); code != device.Success {
				g.Errorf("UNSUBSCRIBE: 0x%02x", code)
			}
			lasting.Want(true, "", d.ResponseTopic())
			lasting.Want(false, full, below(d, 0, 1)...)
			// One that ends with its connection gives all back.
			mark := g.Broker.Log().Mark()
			short.Cut()
			_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Matches("Client short .* (closed its connection|disconnected)"))
			g.Must(err)
			g.Eventually("room for 8 topics", func() bool {
				fresh := g.Subscriber(d, p, "fresh "+p.String(), true)
				defer fresh.Cut()
				codes := fresh.Subscribe(below(d, 100, 100+many/2)...)
				return codes[len(codes)-1] == 1
			})
			g.Subscriber(d, p, lasting.ClientID, true).Cut()
		})
	}
}

// TestDeepSubscriptions: four levels, 256 bytes.
func TestDeepSubscriptions(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.Device("sensor_001")
	for _, p := range harness.BothProtocols {
		s := g.Subscriber(d, p, "client", true)
		s.Want(true, "", d.ResponseTopic()+"/a/b/c/d", d.ResponseTopic()+"/"+strings.Repeat("x", 255-len(d.ResponseTopic())))
		s.Want(false, "more than 4 levels", d.ResponseTopic()+"/a/b/c/d/e", d.ResponseTopic()+strings.Repeat("/a", 190))
		s.Want(false, "longer than 256 bytes", d.ResponseTopic()+"/"+strings.Repeat("x", 256-len(d.ResponseTopic())))
		s.Cut()
	}
}

// TestDisabledDevicesDoNotSubscribe: they can make no new subscription, and what waits for them does not restore one. Their sessions keep what they have, for the
// time when they are enabled again.
func TestDisabledDevicesDoNotSubscribe(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	d := g.Device("sensor_001")
	s := g.Subscriber(d, harness.MQTT5, "client", false)
	s.Want(true, "", d.ResponseTopic())
	g.Disable("sensor_001", true)
	if _, err := s.V5.Next(g.Limit()); err != nil {
		g.Logf("disconnected: %v", err)
	}
	s = g.Subscriber(d, harness.MQTT5, "client", false)
	s.Want(false, "reason=disabled", d.ResponseTopic(), d.CommandTopic())
	g.Disable("sensor_001", false)
	c := &harness.Client{Device: d, Protocol: harness.MQTT5, Username: d.ID}
	var err error
	c.Client, err = d.ConnectV5(g.Limit(), func(c *paho.Connect) { c.ClientID, c.CleanStart = "client", false })
	g.Must(err)
	g.Accept(c, 1, d.Sign("22"))
	_, err = c.Inbox().WaitCount(g.Limit(), d.ResponseTopic(), 1)
	g.Must(err)
	g.Must(c.Close())
}

// TestSubscriptionsOverRestart: what the broker restores counts, and repeating it is free.
func TestSubscriptionsOverRestart(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Persistence: true})
	d := g.Device("sensor_001")
	for _, p := range harness.BothProtocols {
		s := g.Subscriber(d, p, "client", false)
		s.Want(true, "", below(d, 0, many)...)
		g.Must(g.Broker.Stop())
		g.Must(g.Broker.Start())
		s = g.Subscriber(d, p, "client", false)
		s.Want(true, "", below(d, 0, many)...)
		s.Want(false, "subscribed to 16 topics already", d.ResponseTopic())
		s.Unsubscribe(below(d, 0, 1)[0])
		s.Want(true, "", d.ResponseTopic())
		g.Must(g.Broker.Stop())
		g.Must(g.Broker.Start())
		s = g.Subscriber(d, p, "client", false)
		// One might be a repetition; the broker's list tells after it that it was not.
		granted := 0
		for _, code := range s.Subscribe(below(d, 100, 100+many)...) {
			if code == 1 {
				granted++
			}
		}
		if granted > 1 {
			g.Errorf("%v: %d topics beyond those that were restored", p, granted)
		}
		g.Subscriber(d, p, "client", true).Cut()
	}
}

// TestOlderSubscriptions has subscriptions that were made when their client was allowed to, and sessions taken over from
// another device: what is delivered is decided again each time.
func TestOlderSubscriptions(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}})
	g.Watch()
	one := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	late := g.Connect(g.Device("late"), harness.MQTT5)
	for _, filter := range []string{"#", "device/+/data", "device/sensor_001/response", "$share/group/#"} {
		g.Must(late.Subscribe(g.Limit(), filter, 1))
	}
	g.LeaveSubscribed("absent", "#")
	before := one.Sign(`"before"`)
	g.Accept(one, 1, before)
	_, err := late.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, before.Bytes) })
	g.Must(err)

	for _, id := range []string{"late", "absent"} {
		mark := g.Broker.Log().Mark()
		_, err := g.Broker.AddDevice(id)
		g.Must(err)
		_, err = g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed added=1 "))
		g.Must(err)
	}
	seen := len(late.Inbox().All())
	after := one.Sign(`"after"`)
	g.Accept(one, 1, after)
	g.Must(late.Subscribe(g.Limit(), late.ResponseTopic(), 1))
	g.Accept(late, 1, late.Sign(`"own"`))
	_, err = late.Inbox().WaitCount(g.Limit(), late.ResponseTopic(), 1)
	g.Must(err)
	for _, r := range late.Inbox().All()[seen:] {
		if r.Topic != late.ResponseTopic() {
			g.Errorf("a device got on %q by an older subscription: %q", r.Topic, r.Payload)
		}
	}
	// What waited for a client that has become a device.
	absent := g.Resume("absent")
	g.Must(absent.Subscribe(g.Limit(), "device/absent/response", 1))
	d := g.Device("absent")
	g.Accept(&harness.Client{Client: absent, Device: d, Protocol: harness.MQTT5, Username: d.ID}, 1, d.Sign(`"own"`))
	_, err = absent.Inbox().WaitCount(g.Limit(), d.ResponseTopic(), 1)
	g.Must(err)
	for _, r := range absent.Inbox().All() {
		if r.Topic != d.ResponseTopic() {
			g.Errorf("a device got on %q what waited for it: %q", r.Topic, r.Payload)
		}
	}

	// A session with its subscription to another device's responses.
	owner := g.Open(g.Device("sensor_001"), harness.MQTT5, "session", false)
	g.Must(owner.V5.Send(g.Limit(), &packets5.Subscribe{
		PacketID: 1, Properties: &packets5.Properties{},
		Subscriptions: []packets5.SubOptions{{Topic: owner.Device.ResponseTopic(), QoS: 1}},
	}))
	_, err = owner.V5.Next(g.Limit())
	g.Must(err)
	owner.Cut()
	thief, err := g.Device("sensor_002").ConnectV5(g.Limit(), func(c *paho.Connect) { c.ClientID, c.CleanStart = "session", false })
	g.Must(err)
	g.Cleanup(func() { _ = thief.Close() })
	g.Must(one.Subscribe(g.Limit(), one.ResponseTopic(), 1))
	g.Accept(one, 1, one.Sign("22"))
	_, err = one.Inbox().WaitCount(g.Limit(), one.ResponseTopic(), 1)
	g.Must(err)
	g.Must(thief.Subscribe(g.Limit(), "device/sensor_002/response", 1))
	two := g.Device("sensor_002")
	g.Accept(&harness.Client{Client: thief, Device: two, Protocol: harness.MQTT5, Username: two.ID}, 1, two.Sign("22"))
	_, err = thief.Inbox().WaitCount(g.Limit(), two.ResponseTopic(), 1)
	g.Must(err)
	for _, r := range thief.Inbox().All() {
		if r.Topic != two.ResponseTopic() {
			g.Errorf("a device got on %q by another's session: %q", r.Topic, r.Payload)
		}
	}
	g.NothingElse("sensor_001")
}
