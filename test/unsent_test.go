package test

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// lasting connects a subscriber whose session outlives its connection and the broker.
func lasting(g *harness.Gateway) *device.V5 {
	g.Helper()
	c, err := g.Device("dashboard").ConnectV5(g.Limit(), func(c *paho.Connect) {
		c.ClientID, c.CleanStart = "dashboard", false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: new(uint32(3600)), ReceiveMaximum: new(uint16(65535))}
	})
	g.Must(err)
	g.Cleanup(func() { _ = c.Close() })
	return c
}

// sendUntilTheEnd publishes QoS 2 messages with properties, without a pause, until the connection ends, and returns what was
// acknowledged.
func sendUntilTheEnd(g *harness.Gateway, c *harness.Exchange, retain bool) (accepted []device.Message) {
	for i := 0; ; i++ {
		m := c.Device.Sign(fmt.Sprint(i))
		ack, err := c.V5.Publish(g.Limit(), &packets5.Publish{
			Topic: c.Device.DataTopic(), QoS: 2, PacketID: uint16(1 + i%60000), Retain: retain, Payload: m.Bytes,
			Properties: &packets5.Properties{ContentType: "application/json", User: []packets5.User{{Key: "a", Value: "1"}, {Key: "a", Value: ""}}},
		})
		if err != nil || !ack.Accepted() {
			return accepted
		}
		accepted = append(accepted, m)
	}
}

// TestStopLosesNoQoS2 stops the broker again and again while devices publish at QoS 2. A subscriber whose session lasts gets
// everything that was acknowledged, once, with its properties, and what is retained is the last of it, or came after it.
func TestStopLosesNoQoS2(t *testing.T) {
	devices := []string{"sensor_001", "sensor_002", "sensor_003", "sensor_004"}
	g := harness.New(t, broker.Options{
		Devices: append(devices, "witness"), Persistence: true, Quiet: true,
		Conf: "check_retain_source true\nmax_queued_messages 100000\nmax_inflight_messages 0",
	})
	subscriber := lasting(g)
	g.Must(subscriber.Subscribe(g.Limit(), "device/+/data", 1))
	first := make(map[string]int) // deliveries that are no repetitions
	count := func() {
		for _, r := range subscriber.Inbox().All() {
			if r.Retain {
				continue
			}
			if !r.Duplicate {
				first[string(r.Payload)]++
			}
			if p := r.Properties; r.Topic != "device/witness/data" && (p.ContentType != "application/json" || len(p.User) != 2) {
				t.Errorf("a message came with the properties %+v", p)
			}
		}
	}
	var accepted []device.Message
	for range 5 {
		var mu sync.Mutex            // guards accepted and last
		last := make(map[string]int) // the number of the last message that was acknowledged, by topic
		var sending sync.WaitGroup
		for _, id := range devices {
			c := g.Open(g.Device(id), harness.MQTT5, id, true)
			sending.Go(func() {
				sent := sendUntilTheEnd(g, c, true)
				mu.Lock()
				defer mu.Unlock()
				accepted = append(accepted, sent...)
				if len(sent) > 0 {
					last[c.Device.DataTopic()] = len(sent) - 1
				}
			})
		}
		_, err := subscriber.Inbox().WaitCount(g.Limit(), g.Device(devices[0]).DataTopic(), 200)
		g.Must(err)
		g.Must(g.Broker.Stop())
		sending.Wait()
		count()
		g.Must(g.Broker.Start())
		subscriber = lasting(g)
		w := g.Device("witness")
		mark := w.Sign(`"mark"`)
		g.Publish(g.Connect(w, harness.MQTT5), w.DataTopic(), 1, mark.Bytes)
		_, err = subscriber.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, mark.Bytes) })
		g.Must(err)
		late := g.Listen()
		late.Got()
		for topic, n := range last {
			retained := -1
			for _, r := range late.C.Inbox().All() {
				if r.Retain && r.Topic == topic {
					_, payload, _ := bytes.Cut(r.Payload, []byte(`"payload":`))
					payload, _, _ = bytes.Cut(payload, []byte(`,`))
					retained, err = strconv.Atoi(string(payload))
					g.Must(err)
				}
			}
			if retained < n {
				t.Errorf("on %s message %d is retained, and %d was acknowledged", topic, retained, n)
			}
		}
	}
	count()
	missing, twice := 0, 0
	for _, m := range accepted {
		switch first[string(m.Bytes)] {
		case 0:
			missing++
		case 1:
		default:
			twice++
		}
	}
	t.Logf("%d messages were acknowledged", len(accepted))
	if missing > 0 || twice > 0 {
		t.Errorf("of %d acknowledged messages %d are missing and %d came twice", len(accepted), missing, twice)
	}
}

// TestQoS2RetainedOverARestart: with check_retain_source what was published at QoS 2 is served after a restart as what was
// published at QoS 0 and 1 is, and no longer when its device is removed.
func TestQoS2RetainedOverARestart(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "witness"}, Persistence: true, Conf: "check_retain_source true"})
	d := g.Device("sensor_001")
	for qos := byte(0); qos <= 2; qos++ {
		m := harness.Packet{QoS: qos, ID: 1, Message: d.Sign(fmt.Sprint(qos))}
		c := g.Open(d, harness.MQTT5, "client", true)
		if qos == 0 {
			g.Must(c.V5.Send(g.Limit(), &packets5.Publish{Topic: d.DataTopic(), Retain: true, Payload: m.Bytes, Properties: &packets5.Properties{}}))
			g.Posted(m.Message)
		} else {
			c.Put(d.DataTopic(), true, m)
		}
		for restarts := range int(qos) + 1 {
			g.ExpectGot(fmt.Sprintf("QoS %d, %d restarts", qos, restarts), g.Listen().Got(), "r"+string(m.Payload))
			g.Must(g.Broker.Restart())
		}
		g.ExpectGot(fmt.Sprintf("QoS %d, restarted", qos), g.Listen().Got(), "r"+string(m.Payload))
	}
	program := harness.BuildBouncerctl(t)
	mark := g.Broker.Log().Mark()
	g.Bouncerctl(program, "device", "remove", "sensor_001")
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.Must(err)
	g.ExpectGot("removed", g.Listen().Got())
}
