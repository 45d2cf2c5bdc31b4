package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/plugin/sampler"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestPropertiesAreBounded publishes good messages with properties of each kind, of all sizes and numbers.
func TestPropertiesAreBounded(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Conf: "max_packet_size 1048576", Settings: map[string]any{"publish.max_bytes": 4096}})
	g.Watch()
	d := g.Device("sensor_001")
	c, err := d.ConnectV5(g.Limit())
	g.Must(err)
	t.Cleanup(func() { _ = c.Close() })
	user := func(n, length int) *paho.PublishProperties {
		p := new(paho.PublishProperties)
		for i := range n {
			p.User = append(p.User, paho.UserProperty{Key: fmt.Sprint("k", i), Value: strings.Repeat("v", length)})
		}
		return p
	}
	for name, c5 := range map[string]struct {
		properties *paho.PublishProperties
		good       bool
	}{
		"none":                 {new(paho.PublishProperties), true},
		"a few":                {user(10, 20), true},
		"as many as counted":   {user(64, 1), true},
		"too many":             {user(65, 0), false},
		"very many":            {user(5000, 0), false},
		"a long one":           {user(1, 5000), false},
		"long ones":            {user(16, 60000), false},
		"content type":         {&paho.PublishProperties{ContentType: strings.Repeat("x", 5000)}, false},
		"a short content type": {&paho.PublishProperties{ContentType: "application/json"}, true},
		"response topic":       {&paho.PublishProperties{ResponseTopic: strings.Repeat("x", 5000)}, false},
		"correlation data":     {&paho.PublishProperties{CorrelationData: make([]byte, 5000)}, false},
		"all that is small": {&paho.PublishProperties{
			ContentType: "application/json", ResponseTopic: d.ResponseTopic() + "/1", CorrelationData: []byte("0123"),
			MessageExpiry: new(uint32(60)), PayloadFormat: new(byte(1)),
		}, true},
	} {
		for qos := byte(1); qos <= 2; qos++ {
			m := d.Sign("22")
			mark := g.Broker.Log().Mark()
			ack, err := c.PublishPacket(g.Limit(), &paho.Publish{Topic: d.DataTopic(), QoS: qos, Payload: m.Bytes, Properties: c5.properties})
			g.Must(err)
			if ack.Accepted() != c5.good {
				t.Errorf("%s, QoS %d: %v", name, qos, ack)
			}
			if c5.good {
				g.Expect(d.DataTopic(), m)
				g.Delivered(d.DataTopic(), m.Bytes)
				continue
			}
			g.ExpectRefusal(d.DataTopic(), m, name)
			_, err = g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device=sensor_001 ", "reason=too_large"))
			g.Must(err)
		}
	}
	g.NothingElse("sensor_001")
}

// TestProvokedLines has one device provoke each kind of line a thousand times: the log has as many as one device may
// cause, and says how many it left out.
func TestProvokedLines(t *testing.T) {
	const times = 1000
	for name, provoke := range map[string]struct {
		line string
		do   func(g *harness.Gateway, d *device.Device, send func(topic string, payload []byte))
	}{
		"refused publishes": {"device=sensor_001 ", func(g *harness.Gateway, d *device.Device, send func(string, []byte)) {
			for range times {
				send(d.DataTopic(), []byte("{}"))
			}
		}},
		"forbidden topics": {"device=sensor_001 ", func(g *harness.Gateway, d *device.Device, send func(string, []byte)) {
			for i := range times {
				send(fmt.Sprint("site/", i), []byte("x"))
			}
		}},
		"answers that are none": {"device=sensor_001", func(g *harness.Gateway, d *device.Device, send func(string, []byte)) {
			for range times {
				send(d.ResultTopic(), d.Sign(`"no answer"`).Bytes)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true, Quiet: true})
			d := g.Device("sensor_001")
			raw, _, err := d.ConnectRaw5(g.Limit())
			g.Must(err)
			t.Cleanup(func() { _ = raw.Conn.Close() })
			began := time.Now()
			provoke.do(g, d, func(topic string, payload []byte) {
				g.Must(raw.Send(g.Limit(), &packets5.Publish{Topic: topic, Payload: payload, Properties: &packets5.Properties{}}))
			})
			_, err = g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: clients caused more lines than the log takes"))
			g.Must(err)
			// Long enough for all of them to have been seen: a subscription is answered after them.
			c := g.Connect(d, harness.MQTT5)
			g.Must(c.Subscribe(g.Limit(), d.ResponseTopic(), 1))
			most := sampler.ClientBurst + int(time.Since(began).Seconds()+1)*sampler.ClientPerSecond
			if n := g.Broker.Log().Count(0, broker.Contains("bouncer: ", provoke.line)); n < 10 || n > most {
				t.Errorf("%d lines, want %d to %d", n, 10, most)
			}
		})
	}
}
