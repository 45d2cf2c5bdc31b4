package test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// throughBridge publishes on another broker, from which a bridge brings everything: what it brings on gated topics and on
// the gateway's own is refused, for these reasons, and the rest is not the plugin's business.
func throughBridge(g *harness.Gateway, other *broker.Broker, gatedReason string) {
	g.Helper()
	publisher, err := other.Device("publisher")
	g.Must(err)
	c, err := publisher.ConnectV5(g.Limit())
	g.Must(err)
	g.Cleanup(func() { _ = c.Close() })
	d := g.Device("sensor_001")
	for qos := byte(0); qos <= 2; qos++ {
		mark := g.Broker.Log().Mark()
		var want, got []string
		for _, sent := range []struct {
			topic  string
			m      device.Message
			reason string
		}{
			{d.DataTopic(), device.Message{Bytes: []byte(`{"temperature":22}`)}, gatedReason},
			{d.DataTopic(), d.Sign("22"), gatedReason},
			{"device/sensor_001/response", device.Message{Bytes: []byte(`{"status":"ok"}`)}, "forbidden_topic"},
			{"device/sensor_001/command", device.Message{Bytes: []byte(`{"open":true}`)}, "forbidden_topic"},
		} {
			g.ExpectRefusal(sent.topic, sent.m, "through the bridge")
			want = append(want, sent.reason+" "+sent.topic)
			_, err = c.Publish(g.Limit(), sent.topic, qos, qos == 1, sent.m.Bytes)
			g.Must(err)
		}
		// Behind them all, and allowed.
		marker := fmt.Appendf(nil, "QoS %d", qos)
		_, err = c.Publish(g.Limit(), "site/status", qos, false, marker)
		g.Must(err)
		g.Delivered("site/status", marker)
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("Sending PUBLISH to monitor-", "'site/status'"))
		g.Must(err)
		for _, line := range g.Broker.Log().Find(mark, broker.Contains("bouncer: refused ")) {
			got = append(got, harness.Fields(line)["reason"]+" "+harness.Fields(line)["topic"])
		}
		if !slices.Equal(got, want) {
			g.Errorf("QoS %d: refused were %q, want %q", qos, got, want)
		}
	}
	for _, r := range g.Monitor.Inbox().All() {
		if r.Topic == d.ResponseTopic() || r.Topic == "device/sensor_001/command" {
			g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
		}
	}
	g.NothingElse("witness")
}

// subscribedTo waits until a bridge has subscribed with the broker.
func subscribedTo(g *harness.Gateway, b *broker.Broker) {
	g.Helper()
	_, err := b.WaitLog(g.Limit(), 0, broker.Contains("Sending SUBACK"))
	g.Must(err)
}

// TestBridgeOfOurs has the broker itself fetch everything from another one. It does not ask for access then, and with
// per_listener_settings it asks nothing at all: that is refused at the start.
func TestBridgeOfOurs(t *testing.T) {
	other := broker.Start(t, broker.Options{WithoutPlugin: true, Conf: "allow_anonymous true", Listeners: []string{""}})
	conf := "connection other\naddress " + other.Address(1) + "\ntopic # in 2\nnotifications false"
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "witness"}, Conf: conf})
	g.Watch()
	subscribedTo(g, other)
	throughBridge(g, other, "no_tls_identity")

	b := harness.StartRefused(t, broker.Options{BouncerTOML: harness.SoundTOML, PerListenerSettings: true, Conf: conf}, nil)
	const want = ": topic # in 2: with per_listener_settings true no plugin checks the messages that a bridge brings in; "
	if b.Log().Count(0, broker.Contains("bouncer: "+b.Path("mosquitto.conf"), want)) != 1 {
		t.Errorf("the log does not say %q", want)
	}
}

// TestBridgeTakesWills has a bridge that takes everything elsewhere. The broker does not ask what the bridge may read, so
// that it gets a will that nothing tells from a publish, and the empty message that removes it; it gets no other.
func TestBridgeTakesWills(t *testing.T) {
	other := harness.New(t, broker.Options{WithoutPlugin: true, Conf: "allow_anonymous true", Listeners: []string{""}})
	other.Watch()
	g := harness.New(t, broker.Options{
		Devices: registered(), Conf: "connection other\naddress " + other.Broker.Address(1) + "\ntopic # out 1\nnotifications false",
	})
	g.Watch()
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("Received CONNACK on connection"))
	g.Must(err)
	var known []string
	for _, b := range bequests {
		d, clientID := g.Device(b.device), b.device+"-testator"
		m := b.message(g, d, clientID)
		if b.topic == "" {
			b.topic = d.DataTopic()
		}
		g.ExpectRefusal(b.topic, m, "the will "+b.device)
		mark := g.Broker.Log().Mark()
		g.LeaveWill(d, harness.MQTT5, clientID, 0, harness.LastWill{Topic: b.topic, Message: m.Bytes}).TakeOver(g, d, true)
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device="+b.device+" ", "reason="+b.reason+" "))
		g.Must(err)
		if b.passes {
			known = append(known, b.topic+" "+string(m.Bytes), b.topic+" ")
		}
	}
	d := g.Device("witness")
	last := d.Sign(`"last"`)
	g.Accept(g.Connect(d, harness.MQTT5), 1, last)
	other.Delivered(d.DataTopic(), last.Bytes)
	var got []string
	left := g.AllAccepted()
	for _, r := range other.Monitor.Inbox().All() {
		i := slices.IndexFunc(left, func(d harness.Delivery) bool { return d.Topic == r.Topic && bytes.Equal(d.Bytes, r.Payload) })
		switch {
		case i >= 0:
			left = slices.Delete(left, i, i+1)
		case !strings.HasSuffix(r.Topic, "/response"):
			got = append(got, r.Topic+" "+string(r.Payload))
		}
	}
	g.NoMore("the other broker", harness.Missing(left))
	if !slices.Equal(got, known) {
		g.Errorf("the other broker got besides what was accepted\n\t%q, want\n\t%q", got, known)
	}
	g.NothingElse("witness")
}

// TestBridgeOfOthers has another broker bring everything, as a client with a certificate of its own.
func TestBridgeOfOthers(t *testing.T) {
	for _, version := range []string{"mqttv311", "mqttv50"} {
		t.Run(version, func(t *testing.T) {
			g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
			g.Watch()
			other, err := broker.New(broker.Options{WithoutPlugin: true, Conf: strings.Join([]string{
				"connection gateway", "address " + g.Broker.Address(0), "topic # out 2", "bridge_protocol_version " + version,
				"bridge_cafile {dir}/gateway.crt", "bridge_certfile {dir}/bridge.crt", "bridge_keyfile {dir}/bridge.key",
			}, "\n")})
			g.Must(err)
			g.Cleanup(func() { g.Must(other.Close()) })
			cert, key, err := g.Broker.CA().IssueDevice("bridge", time.Now(), time.Hour)
			g.Must(err)
			for name, pem := range map[string][]byte{"gateway.crt": g.Broker.CA().CertPEM(), "bridge.crt": cert, "bridge.key": key} {
				g.Must(other.WriteFile(name, pem))
			}
			g.Must(other.Start())
			_, err = g.Broker.WaitLog(g.Limit(), 0, broker.Contains("u'bridge'"))
			g.Must(err)
			throughBridge(g, other, "topic_mismatch")
			g.Must(other.Stop())
		})
	}
}
