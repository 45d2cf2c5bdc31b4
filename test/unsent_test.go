package test

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// lasting connects a subscriber whose session outlives its connection and the broker.
func (g *gate) lasting() *device.V5 {
	g.Helper()
	c, err := g.device("dashboard").ConnectV5(g.limit(), func(c *paho.Connect) {
		c.ClientID, c.CleanStart = "dashboard", false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: ptr[uint32](3600), ReceiveMaximum: ptr[uint16](65535)}
	})
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	return c
}

// sendUntilTheEnd publishes QoS 2 messages with properties, without a pause, until the connection ends, and returns what was
// acknowledged.
func sendUntilTheEnd(g *gate, c *exchange, retain bool) (accepted []device.Message) {
	for i := 0; ; i++ {
		m := c.device.Sign(fmt.Sprint(i))
		ack, err := c.v5.Publish(g.limit(), &packets5.Publish{
			Topic: c.device.DataTopic(), QoS: 2, PacketID: uint16(1 + i%60000), Retain: retain, Payload: m.Bytes,
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
	g := newGate(t, broker.Options{
		Devices: append(devices, "witness"), Persistence: true, Quiet: true,
		Conf: "check_retain_source true\nmax_queued_messages 100000\nmax_inflight_messages 0",
	})
	subscriber := g.lasting()
	g.no(subscriber.Subscribe(g.limit(), "device/+/data", 1))
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
			c := g.open(g.device(id), mqtt5, id, true)
			sending.Go(func() {
				sent := sendUntilTheEnd(g, c, true)
				mu.Lock()
				defer mu.Unlock()
				accepted = append(accepted, sent...)
				if len(sent) > 0 {
					last[c.device.DataTopic()] = len(sent) - 1
				}
			})
		}
		_, err := subscriber.Inbox().WaitCount(g.limit(), g.device(devices[0]).DataTopic(), 200)
		g.no(err)
		g.no(g.broker.Stop())
		sending.Wait()
		count()
		g.no(g.broker.Start())
		subscriber = g.lasting()
		w := g.device("witness")
		mark := w.Sign(`"mark"`)
		g.publish(g.connect(w, mqtt5), w.DataTopic(), 1, mark.Bytes)
		_, err = subscriber.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, mark.Bytes) })
		g.no(err)
		late := g.listen()
		late.got()
		for topic, n := range last {
			retained := -1
			for _, r := range late.c.Inbox().All() {
				if r.Retain && r.Topic == topic {
					_, payload, _ := bytes.Cut(r.Payload, []byte(`"payload":`))
					payload, _, _ = bytes.Cut(payload, []byte(`,`))
					retained, err = strconv.Atoi(string(payload))
					g.no(err)
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
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}, Persistence: true, Conf: "check_retain_source true"})
	d := g.device("sensor_001")
	for qos := byte(0); qos <= 2; qos++ {
		m := packet{qos: qos, id: 1, Message: d.Sign(fmt.Sprint(qos))}
		c := g.open(d, mqtt5, "client", true)
		if qos == 0 {
			g.no(c.v5.Send(g.limit(), &packets5.Publish{Topic: d.DataTopic(), Retain: true, Payload: m.Bytes, Properties: &packets5.Properties{}}))
			g.posted(m.Message)
		} else {
			c.put(d.DataTopic(), true, m)
		}
		for restarts := range int(qos) + 1 {
			g.expectGot(fmt.Sprintf("QoS %d, %d restarts", qos, restarts), g.listen().got(), "r"+string(m.Payload))
			g.no(g.broker.Restart())
		}
		g.expectGot(fmt.Sprintf("QoS %d, restarted", qos), g.listen().got(), "r"+string(m.Payload))
	}
	program := buildCtl(t)
	mark := g.broker.Log().Mark()
	g.ctl(program, "device", "remove", "sensor_001")
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed", "removed=1"))
	g.no(err)
	g.expectGot("removed", g.listen().got())
}
