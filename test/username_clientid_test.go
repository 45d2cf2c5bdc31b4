package test

import (
	"fmt"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

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
			g := newGate(t, broker.Options{Devices: registered(), Persistence: true, ListenerConf: usernameAsClientID})
			g.wills(e, p, "")
		})
	}
}

// TestResponsesUnderAUserName is TestResponses where the user name is the client id.
func TestResponsesUnderAUserName(t *testing.T) {
	newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}, ListenerConf: usernameAsClientID}).responses()
}

// TestResponseWaitsUnderAUserName: the session of a device that is away keeps the response for it, whatever client id the
// device asks for.
func TestResponseWaitsUnderAUserName(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, ListenerConf: usernameAsClientID})
	g.watch()
	d := g.device("sensor_001")
	for _, p := range bothProtocols {
		s := g.subscriber(d, p, "one id", false)
		s.want(true, "", d.ResponseTopic())
		answered, body := make(chan struct{}), fmt.Sprintf("late, %v", p)
		g.backend.Script(func(*backend.Request) backend.Answer {
			<-answered
			return backend.Answer{Body: []byte(body)}
		})
		m := d.Sign(`"and away"`)
		g.expect(d.DataTopic(), m)
		s.publish(d.DataTopic(), packet{qos: 1, id: 9, Message: m})
		s.cut()
		mark := g.broker.Log().Mark()
		close(answered)
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("Sending PUBLISH to monitor", d.ResponseTopic()))
		g.no(err)
		g.open(d, p, "another id", false).receive(body)
	}
	g.nothingElse("sensor_001")
}

// receive reads packets until a publish with the given payload has come.
func (c *exchange) receive(payload string) {
	c.Helper()
	for {
		var got []byte
		if c.v5 != nil {
			next, err := c.v5.Next(c.limit())
			c.no(err)
			if publish, ok := next.Content.(*packets5.Publish); ok {
				got = publish.Payload
			}
		} else {
			next, err := c.v3.Next(c.limit())
			c.no(err)
			if publish, ok := next.(*packets3.PublishPacket); ok {
				got = publish.Payload
			}
		}
		if string(got) == payload {
			return
		}
	}
}
