package test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// throughBridge publishes on another broker, from which a bridge brings everything: what it brings on gated topics and on
// the gateway's own is refused, for these reasons, and the rest is not the plugin's business.
func (g *gate) throughBridge(other *broker.Broker, gatedReason string) {
	g.Helper()
	publisher, err := other.Device("publisher")
	g.no(err)
	c, err := publisher.ConnectV5(g.limit())
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	d := g.device("sensor_001")
	for qos := byte(0); qos <= 2; qos++ {
		mark := g.broker.Log().Mark()
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
			g.refused = append(g.refused, delivery{sent.m, sent.topic, "through the bridge"})
			want = append(want, sent.reason+" "+sent.topic)
			_, err = c.Publish(g.limit(), sent.topic, qos, qos == 1, sent.m.Bytes)
			g.no(err)
		}
		// Behind them all, and allowed.
		marker := fmt.Appendf(nil, "QoS %d", qos)
		_, err = c.Publish(g.limit(), "site/status", qos, false, marker)
		g.no(err)
		g.delivered("site/status", marker)
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("Sending PUBLISH to monitor-", "'site/status'"))
		g.no(err)
		for _, line := range g.broker.Log().Find(mark, broker.Contains("bouncer: refused ")) {
			got = append(got, fields(line)["reason"]+" "+fields(line)["topic"])
		}
		if !slices.Equal(got, want) {
			g.Errorf("QoS %d: refused were %q, want %q", qos, got, want)
		}
	}
	for _, r := range g.monitor.Inbox().All() {
		if r.Topic == d.ResponseTopic() || r.Topic == "device/sensor_001/command" {
			g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
		}
	}
	g.nothingElse("witness")
}

// subscribedTo waits until a bridge has subscribed with the broker.
func (g *gate) subscribedTo(b *broker.Broker) {
	g.Helper()
	_, err := b.WaitLog(g.limit(), 0, broker.Contains("Sending SUBACK"))
	g.no(err)
}

// TestBridgeOfOurs has the broker itself fetch everything from another one. It does not ask for access then, and with
// per_listener_settings it asks nothing at all: that is refused at the start.
func TestBridgeOfOurs(t *testing.T) {
	other := broker.Start(t, broker.Options{WithoutPlugin: true, Conf: "allow_anonymous true", Listeners: []string{""}})
	conf := "connection other\naddress " + other.Address(1) + "\ntopic # in 2\nnotifications false"
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}, Conf: conf})
	g.watch()
	g.subscribedTo(other)
	g.throughBridge(other, "no_tls_identity")

	b := refuse(t, broker.Options{BouncerTOML: sound, PerListenerSettings: true, Conf: conf}, nil)
	const want = ": topic # in 2: with per_listener_settings true no plugin is asked about what a bridge brings; "
	if b.Log().Count(0, broker.Contains("bouncer: "+b.Path("mosquitto.conf"), want)) != 1 {
		t.Errorf("the log does not say %q", want)
	}
}

// TestBridgeTakesWills has a bridge that takes everything elsewhere. The broker does not ask what the bridge may read, so
// that it gets a will that nothing tells from a publish, and the empty message that removes it; it gets no other.
func TestBridgeTakesWills(t *testing.T) {
	other := newGate(t, broker.Options{WithoutPlugin: true, Conf: "allow_anonymous true", Listeners: []string{""}})
	other.watch()
	g := newGate(t, broker.Options{
		Devices: registered(), Conf: "connection other\naddress " + other.broker.Address(1) + "\ntopic # out 1\nnotifications false",
	})
	g.watch()
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("Received CONNACK on connection"))
	g.no(err)
	var known []string
	for _, b := range bequests {
		d, clientID := g.device(b.device), b.device+"-testator"
		m := b.message(g, d, clientID)
		if b.topic == "" {
			b.topic = d.DataTopic()
		}
		g.refused = append(g.refused, delivery{m, b.topic, "the will " + b.device})
		mark := g.broker.Log().Mark()
		g.leaveWill(d, mqtt5, clientID, 0, lastWill{topic: b.topic, message: m.Bytes}).takeOver(g, d, true)
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device="+b.device+" ", "reason="+b.reason+" "))
		g.no(err)
		if b.passes {
			known = append(known, b.topic+" "+string(m.Bytes), b.topic+" ")
		}
	}
	d := g.device("witness")
	last := d.Sign(`"last"`)
	g.accept(g.connect(d, mqtt5), 1, last)
	other.delivered(d.DataTopic(), last.Bytes)
	var got []string
	left := slices.Clone(g.accepted)
	for _, r := range other.monitor.Inbox().All() {
		i := slices.IndexFunc(left, func(d delivery) bool { return d.topic == r.Topic && bytes.Equal(d.Bytes, r.Payload) })
		switch {
		case i >= 0:
			left = slices.Delete(left, i, i+1)
		case !strings.HasSuffix(r.Topic, "/response"):
			got = append(got, r.Topic+" "+string(r.Payload))
		}
	}
	g.noMore("the other broker", missing(left))
	if !slices.Equal(got, known) {
		g.Errorf("the other broker got besides what was accepted\n\t%q, want\n\t%q", got, known)
	}
	g.nothingElse("witness")
}

// TestBridgeOfOthers has another broker bring everything, as a client with a certificate of its own.
func TestBridgeOfOthers(t *testing.T) {
	for _, version := range []string{"mqttv311", "mqttv50"} {
		t.Run(version, func(t *testing.T) {
			g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}})
			g.watch()
			other, err := broker.New(broker.Options{WithoutPlugin: true, Conf: strings.Join([]string{
				"connection gateway", "address " + g.broker.Address(0), "topic # out 2", "bridge_protocol_version " + version,
				"bridge_cafile {dir}/gateway.crt", "bridge_certfile {dir}/bridge.crt", "bridge_keyfile {dir}/bridge.key",
			}, "\n")})
			g.no(err)
			g.Cleanup(func() { g.no(other.Close()) })
			cert, key, err := g.broker.CA().IssueDevice("bridge", time.Now(), time.Hour)
			g.no(err)
			for name, pem := range map[string][]byte{"gateway.crt": g.broker.CA().CertPEM(), "bridge.crt": cert, "bridge.key": key} {
				g.no(other.WriteFile(name, pem))
			}
			g.no(other.Start())
			_, err = g.broker.WaitLog(g.limit(), 0, broker.Contains("u'bridge'"))
			g.no(err)
			g.throughBridge(other, "topic_mismatch")
			g.no(other.Stop())
		})
	}
}
