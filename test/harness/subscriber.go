package harness

import (
	"bytes"
	"slices"
	"strings"

	packets5 "github.com/eclipse/paho.golang/packets"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// A Listener is a subscriber that tells what it has got, from its subscription on.
type Listener struct {
	g *Gateway
	C *Client
}

// Listen subscribes to what devices publish.
func (g *Gateway) Listen() Listener {
	g.Helper()
	c := g.Connect(g.Device("dashboard"), MQTT5)
	for _, filter := range []string{"device/+/data", "alarm/+/raise"} {
		g.Must(c.Subscribe(g.Limit(), filter, 2))
	}
	return Listener{g, c}
}

// Got returns the payloads that came, those that were retained with an 'r' before them, when another device's message
// shows that there will be no more.
func (l Listener) Got() (payloads []string) {
	l.g.Helper()
	w := l.g.Device("witness")
	last := w.Sign(`"last"`)
	if ack := l.g.Publish(l.g.Connect(w, MQTT5), w.DataTopic(), 1, last.Bytes); !ack.Accepted() {
		l.g.Fatalf("the witness: %v", ack)
	}
	_, err := l.C.Inbox().Wait(l.g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, last.Bytes) })
	l.g.Must(err)
	for _, r := range l.C.Inbox().All() {
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

// ExpectGot compares what a Listener got.
func (g *Gateway) ExpectGot(what string, got []string, want ...string) {
	g.Helper()
	if !slices.Equal(got, want) {
		g.Errorf("%s: a subscriber got %q, want %q", what, got, want)
	}
}

// A Subscriber is a device that subscribes over a session of its own.
type Subscriber struct {
	*Exchange
	packetID uint16
}

// Subscriber opens a session for a device that subscribes; Open says what clean means.
func (g *Gateway) Subscriber(d *device.Device, p Protocol, clientID string, clean bool) *Subscriber {
	g.Helper()
	return &Subscriber{Exchange: g.Open(d, p, clientID, clean)}
}

// Subscribe sends one SUBSCRIBE with all the topics and returns the codes of the SUBACK. MQTT 3.1.1's failure, 0x80, is
// returned as MQTT 5's.
func (s *Subscriber) Subscribe(topics ...string) (codes []byte) {
	s.Helper()
	s.packetID++
	if s.V5 != nil {
		packet := &packets5.Subscribe{PacketID: s.packetID, Properties: &packets5.Properties{}}
		for _, topic := range topics {
			packet.Subscriptions = append(packet.Subscriptions, packets5.SubOptions{Topic: topic, QoS: 1})
		}
		s.Must(s.V5.Send(s.Limit(), packet))
		for {
			next, err := s.V5.Next(s.Limit())
			s.Must(err)
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

func (s *Subscriber) subscribe3(topics []string) []byte {
	s.Helper()
	packet := packets3.NewControlPacket(packets3.Subscribe).(*packets3.SubscribePacket)
	packet.MessageID, packet.Topics = s.packetID, topics
	for range topics {
		packet.Qoss = append(packet.Qoss, 1)
	}
	s.Must(s.V3.Send(s.Limit(), packet))
	for {
		next, err := s.V3.Next(s.Limit())
		s.Must(err)
		if suback, ok := next.(*packets3.SubackPacket); ok {
			return suback.ReturnCodes
		}
	}
}

// Unsubscribe returns the code of the UNSUBACK; MQTT 3.1.1 has none.
func (s *Subscriber) Unsubscribe(topic string) byte {
	s.Helper()
	s.packetID++
	if s.V5 == nil {
		packet := packets3.NewControlPacket(packets3.Unsubscribe).(*packets3.UnsubscribePacket)
		packet.MessageID, packet.Topics = s.packetID, []string{topic}
		s.Must(s.V3.Send(s.Limit(), packet))
		for {
			next, err := s.V3.Next(s.Limit())
			s.Must(err)
			if _, ok := next.(*packets3.UnsubackPacket); ok {
				return device.Success
			}
		}
	}
	s.Must(s.V5.Send(s.Limit(), &packets5.Unsubscribe{PacketID: s.packetID, Topics: []string{topic}, Properties: &packets5.Properties{}}))
	for {
		next, err := s.V5.Next(s.Limit())
		s.Must(err)
		if unsuback, ok := next.Content.(*packets5.Unsuback); ok {
			return unsuback.Reasons[0]
		}
	}
}

// Want subscribes to each topic by itself; all must be granted, or all refused with a line in the log that says why.
func (s *Subscriber) Want(granted bool, why string, topics ...string) {
	s.Helper()
	for _, topic := range topics {
		mark := s.Broker.Log().Mark()
		code := s.Subscribe(topic)[0]
		if (code == 1) != granted {
			s.Errorf("%v, client %s: %.80q: 0x%02x, granted should be %v", s.Protocol, s.ClientID, topic, code, granted)
			return
		}
		if !granted {
			line, err := s.Broker.WaitLog(s.Limit(), mark, broker.Contains("bouncer: refused "))
			s.Must(err)
			if !strings.Contains(line, why) {
				s.Errorf("%.80q: the log says %s, want %q", topic, line, why)
			}
		}
	}
}
