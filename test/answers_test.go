package test

import (
	"fmt"
	"testing"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestMessageOnAnotherTopic has a thief of a device's certificate, with a message that he has captured on its way, publish
// it on another gated topic of the device, under the device's own client id. The device's own copy is never acknowledged
// with nothing behind it: it is accepted, or refused.
func TestMessageOnAnotherTopic(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001"}, HTTP: true,
		Settings: map[string]any{"publish.topics": []string{"device/+/data", "alarm/+/raise", "+/x"}},
	})
	d := g.Device("sensor_001")
	topics := []string{d.DataTopic(), "alarm/sensor_001/raise", "sensor_001/x", d.ResultTopic()}
	answer := fmt.Sprintf(`{"command_id":%q,"status":"succeeded"}`, unknownCommand)
	posts := 0
	for _, payload := range []string{`{"alarm":"fire"}`, answer} {
		for _, stolen := range topics {
			for _, own := range topics {
				if stolen == own {
					continue
				}
				for qos := byte(1); qos <= 2; qos++ {
					what := fmt.Sprintf("%s on %s, then on %s at QoS %d", payload, stolen, own, qos)
					p := harness.Packet{QoS: qos, ID: 1, Message: d.Sign(payload)}
					thief := g.Open(d, harness.MQTT5, d.ID, true)
					// On the topic of the answers only an answer is taken.
					taken := stolen != d.ResultTopic() || payload == answer
					if ack := thief.Put(stolen, false, p); ack.Accepted() != taken {
						t.Errorf("%s: the thief got %v", what, ack)
					}
					c := thief.Again(true, true)
					want := !taken && (own != d.ResultTopic() || payload == answer)
					if ack := c.Put(own, false, p); ack.Accepted() != want {
						t.Errorf("%s: the device got %v, want success %v", what, ack, want)
					}
					if taken && stolen != d.ResultTopic() || want && own != d.ResultTopic() {
						posts++
						g.Posted(p.Message)
					}
					c.Cut()
				}
			}
		}
	}
	if n := g.Backend.Count(); n != posts {
		t.Errorf("the backend got %d messages, want %d", n, posts)
	}
}

const unknownCommand = "01234567-89ab-8def-8123-456789abcdef"

// TestWhatIsNoAnswer publishes on the topic of the answers what is none: it is refused before it is remembered, so that the
// same message on the topic that it is meant for is accepted. An answer that changes nothing is acknowledged.
func TestWhatIsNoAnswer(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}, HTTP: true})
	d := g.Device("sensor_001")
	c := g.Connect(d, harness.MQTT5)
	for _, payload := range []string{
		`{"alarm":"fire"}`, `"succeeded"`, `{}`, `[]`, `null`, `22`,
		`{"command_id":"` + unknownCommand + `"}`,
		`{"status":"succeeded"}`,
		`{"command_id":"` + unknownCommand + `","status":"done"}`,
		`{"command_id":"` + unknownCommand + `","status":"queued"}`,
		`{"command_id":"` + unknownCommand + `","status":["succeeded"]}`,
		`{"command_id":"` + unknownCommand + `","status":"succeeded","alarm":"fire"}`,
		`{"command_id":"01234567-89ab-4def-8123-456789abcdef","status":"succeeded"}`,
		`{"command_id":"01234567-89AB-8DEF-8123-456789ABCDEF","status":"succeeded"}`,
		`{"command_id":"","status":"succeeded"}`,
		`{"Command_id":"` + unknownCommand + `","status":"succeeded"}`,
		`[{"command_id":"` + unknownCommand + `","status":"succeeded"}]`,
		`{"alarm":{"command_id":"` + unknownCommand + `","status":"succeeded"}}`,
	} {
		m := d.Sign(payload)
		mark := g.Broker.Log().Mark()
		if ack := g.Publish(c, c.ResultTopic(), 1, m.Bytes); ack.Code != device.NotAuthorized {
			t.Errorf("%s: %v", payload, ack)
		}
		line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device="))
		g.Must(err)
		if got := harness.Fields(line); got["reason"] != "malformed" || got["message_id"] != m.MessageID {
			t.Errorf("%s: %s", payload, line)
		}
		g.Accept(c, 1, m)
	}

	// These change nothing, and are answers.
	other := g.Ask("POST", "/v1/devices/sensor_002/commands", `1`)
	for what, id := range map[string]string{"of no command": unknownCommand, "of another device's command": other.ID} {
		for _, payload := range []string{
			`{"command_id":"` + id + `","status":"succeeded"}`,
			`{ "result" : { "a" : [ "}" , "\"" , { } ] } , "status" : "failed" , "command_id" : "` + id + `" }`,
			`{"result":-1.5e3,"command_id":"` + id + `","status":"rejected"}`,
		} {
			if ack := g.Publish(c, c.ResultTopic(), 1, d.Sign(payload).Bytes); !ack.Accepted() {
				t.Errorf("%s, an answer %s: %v", payload, what, ack)
			}
		}
	}
	if s := g.Ask("GET", other.URL, ""); s.State == "succeeded" {
		t.Errorf("another device's command: %s", s.Text)
	}
	// A command that the device has answered, and answers again.
	mine := g.Ask("POST", "/v1/devices/sensor_001/commands", `1`)
	for range 2 {
		if ack := g.Publish(c, c.ResultTopic(), 1, c.Answer(mine.ID, "succeeded", "").Bytes); !ack.Accepted() {
			t.Errorf("an answer: %v", ack)
		}
	}
}
