package test

import (
	"fmt"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
)

// TestWillsUnderAUserName is TestWills where the user name is the client id. No client can take over another one's session
// there, so that ending is left out.
func TestWillsUnderAUserName(t *testing.T) {
	for _, e := range endings {
		if e.name == "take-over by another device" {
			continue
		}
		p := e.protocols[len(e.protocols)-1]
		t.Run(fmt.Sprintf("%s, %v", e.name, p), func(t *testing.T) {
			t.Parallel()
			g := harness.New(t, broker.Options{Devices: registered(), Persistence: true, ListenerConf: usernameAsClientID})
			wills(g, e, p, "")
		})
	}
}

// TestResponsesUnderAUserName is TestResponses where the user name is the client id.
func TestResponsesUnderAUserName(t *testing.T) {
	responses(harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}, ListenerConf: usernameAsClientID}))
}

// TestResponseWaitsUnderAUserName: the session of a device that is away keeps the response for it, whatever client id the
// device asks for.
func TestResponseWaitsUnderAUserName(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, ListenerConf: usernameAsClientID})
	g.Watch()
	d := g.Device("sensor_001")
	for _, p := range harness.BothProtocols {
		s := g.Subscriber(d, p, "one id", false)
		s.Want(true, "", d.ResponseTopic())
		answered, body := make(chan struct{}), fmt.Sprintf("late, %v", p)
		g.Backend.Script(func(*backend.Request) backend.Answer {
			<-answered
			return backend.Answer{Body: []byte(body)}
		})
		m := d.Sign(`"and away"`)
		g.Expect(d.DataTopic(), m)
		s.Publish(d.DataTopic(), harness.Packet{QoS: 1, ID: 9, Message: m})
		s.Cut()
		mark := g.Broker.Log().Mark()
		close(answered)
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("Sending PUBLISH to monitor", d.ResponseTopic()))
		g.Must(err)
		receive(g.Open(d, p, "another id", false), body)
	}
	g.NothingElse("sensor_001")
}

// receive reads packets until a publish with the given payload has come.
func receive(c *harness.Exchange, payload string) {
	c.Helper()
	for {
		var got []byte
		if c.V5 != nil {
			next, err := c.V5.Next(c.Limit())
			c.Must(err)
			if publish, ok := next.Content.(*packets5.Publish); ok {
				got = publish.Payload
			}
		} else {
			next, err := c.V3.Next(c.Limit())
			c.Must(err)
			if publish, ok := next.(*packets3.PublishPacket); ok {
				got = publish.Payload
			}
		}
		if string(got) == payload {
			return
		}
	}
}
