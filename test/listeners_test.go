package test

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// tlsListener are the settings of a listener as the first one is.
const tlsListener = "cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username true\n"

// TestMountPoint has listeners that put something before each topic, which may make a gated topic of one that is not, and
// the other way round.
func TestMountPoint(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices:   []string{"sensor_001"},
		Settings:  map[string]any{"publish.topics": []string{"device/+/data", "site/device/+/data"}},
		Listeners: []string{tlsListener + "mount_point site/", tlsListener + "mount_point device/", tlsListener + "mount_point other/"},
	})
	g.watch()
	d := g.device("sensor_001")
	unsigned := device.Message{Bytes: []byte("22")}
	g.eachWay(func(g *gate, p protocol, qos byte) {
		for i, mount := range []struct{ prefix, topic string }{
			{"site/", "device/sensor_001/data"}, {"device/", "sensor_001/data"},
		} {
			c := g.connect(d.Via(g.broker.Address(i+1)), p)
			send := func(m device.Message, reason string) {
				g.Helper()
				mark := g.broker.Log().Mark()
				if reason == "accepted" {
					g.expect(mount.prefix+mount.topic, m)
				} else {
					g.refused = append(g.refused, delivery{m, mount.topic, "through a mount point"})
				}
				ack := g.publish(c, mount.topic, qos, m.Bytes)
				if reason == "accepted" {
					if !ack.Accepted() {
						g.Errorf("a good message: %v", ack)
					}
					g.delivered(mount.prefix+mount.topic, m.Bytes)
					return
				}
				if ack.Code != p.refusal(qos) {
					g.Errorf("%s: %v", reason, ack)
				}
				line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
				g.no(err)
				if got := fields(line); got["reason"] != reason || got["topic"] != mount.prefix+mount.topic {
					g.Errorf("want %s on %s; the log says: %s", reason, mount.prefix+mount.topic, line)
				}
			}
			good := d.Sign("22")
			send(unsigned, "malformed")
			send(good, "accepted")
			send(good, "replay")
		}
		// A mount point that no filter has leaves the device without a topic, and not with one more.
		mark := g.broker.Log().Mark()
		g.refused = append(g.refused, delivery{unsigned, "other/device/sensor_001/data", "through a mount point"})
		if ack := g.publish(g.connect(d.Via(g.broker.Address(3)), p), d.DataTopic(), qos, unsigned.Bytes); ack.Code != p.refusal(qos) {
			g.Errorf("a topic that is gated no longer: %v", ack)
		}
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused device=sensor_001 topic=other/device/sensor_001/data reason=forbidden_topic "))
		g.no(err)
	})
	// All that the monitor got on the mounted topics was accepted.
	left := slices.Clone(g.accepted)
	for _, r := range g.monitor.Inbox().All() {
		i := slices.IndexFunc(left, func(d delivery) bool { return d.topic == r.Topic && bytes.Equal(d.Bytes, r.Payload) })
		switch {
		case i >= 0:
			left = slices.Delete(left, i, i+1)
		case !strings.HasSuffix(r.Topic, "/response"):
			g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
		}
	}
	g.noMore("the monitor", missing(left))
	g.no(g.broker.Stop())
	g.noMore("the backend", g.unexpectedRequests())
}

// TestWebsockets has verdicts and last wills of clients that come by websockets.
func TestWebsockets(t *testing.T) {
	g := newGate(t, broker.Options{Devices: registered(), Listeners: []string{"protocol websockets\n" + tlsListener}})
	g.watch()
	d, w := g.device("fresh"), g.device("witness")
	for qos := byte(0); qos <= 2; qos++ {
		c := g.connectWebsocket(d, qos == 2)
		g.refuse(c, d.DataTopic(), qos, device.Message{Bytes: []byte(`{"temperature":22}`)}, "malformed")
		g.refuse(c, w.DataTopic(), qos, d.Sign("22"), "topic_mismatch")
		m := d.Sign("22")
		g.accept(c, qos, m)
		g.refuse(c, d.DataTopic(), qos, m, "replay")
	}

	// A will that is good as a publish, the worst of them, for each cause.
	leave := func(id string) (*testator, device.Message) {
		m := d.Sign("22")
		g.refused = append(g.refused, delivery{m, d.DataTopic(), id})
		conn := g.dialWebsocket(d)
		p := packets3.NewControlPacket(packets3.Connect).(*packets3.ConnectPacket)
		p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.CleanSession, p.Keepalive = "MQTT", 4, id, true, 30
		p.WillFlag, p.WillQos, p.WillTopic, p.WillMessage = true, 1, d.DataTopic(), m.Bytes
		g.no(p.Write(conn))
		answer, err := packets3.ReadPacket(conn)
		g.no(err)
		if connack, ok := answer.(*packets3.ConnackPacket); !ok || connack.ReturnCode != 0 {
			g.Fatalf("connecting by a websocket: %v", answer)
		}
		return &testator{Conn: conn, device: d, protocol: mqtt311, clientID: id}, m
	}
	refused := func(mark int, m device.Message) {
		g.Helper()
		line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
		g.no(err)
		if got := fields(line); got["reason"] != "forbidden_topic" || got["detail"] != "a last will on a gated topic reaches nobody" {
			g.Errorf("the will %s; the log says: %s", m.MessageID, line)
		}
	}
	for i, end := range []func(*gate, *testator){cut, func(g *gate, t *testator) { t.takeOver(g, d, true) }} {
		c, m := leave(fmt.Sprint("testator-", i))
		mark := g.broker.Log().Mark()
		end(g, c)
		refused(mark, m)
	}
	g.accept(g.connect(w, mqtt5), 1, w.Sign("22"))
	_, m := leave("testator at the stop")
	mark := g.broker.Log().Mark()
	g.no(g.broker.Stop())
	refused(mark, m)
	<-g.monitor.Done()
	g.noMore("the monitor", g.unexpectedPublishes())
	g.noMore("the backend", g.unexpectedRequests())
}

// dialWebsocket opens a websocket to the second listener. It is cut at the end of the (sub)test.
func (g *gate) dialWebsocket(d *device.Device) net.Conn {
	g.Helper()
	conn, err := mqtt.NewWebsocket("wss://"+g.broker.Address(1)+"/mqtt", d.TLS(), patience, nil, &mqtt.WebsocketOptions{})
	g.no(err)
	g.Cleanup(func() { conn.Close() })
	return conn
}

// connectWebsocket connects to the second listener, by MQTT 3.1.1.
func (g *gate) connectWebsocket(d *device.Device, cleanSession bool) *client {
	g.Helper()
	c, err := d.ConnectV3(g.limit(), func(o *mqtt.ClientOptions) {
		o.SetCleanSession(cleanSession)
		o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return g.dialWebsocket(d), nil })
	})
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	return &client{Client: c, Device: d, protocol: mqtt311, username: d.ID}
}

// TestPerListenerSettings has the plugin under one listener or two. On 2.0.11 it is then never called at regular times.
func TestPerListenerSettings(t *testing.T) {
	const pluginLines = "plugin {plugin}\nplugin_opt_config_file {dir}/bouncer.toml\n"
	for _, c := range []struct {
		name      string
		listeners []string
	}{
		{"one listener", nil},
		{"two listeners", []string{tlsListener + pluginLines}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newGate(t, broker.Options{
				Devices: []string{"sensor_001", "witness"}, PerListenerSettings: true, Listeners: c.listeners,
			})
			g.watch()
			d := g.device("sensor_001")
			var last device.Message
			for i := range 1 + len(c.listeners) {
				via := d.Via(g.broker.Address(i))
				g.eachWay(func(g *gate, p protocol, qos byte) {
					sensor := g.connect(via, p)
					g.refuse(sensor, d.DataTopic(), qos, device.Message{Bytes: []byte("22")}, "malformed")
					g.refuse(sensor, "device/witness/data", qos, d.Sign("22"), "topic_mismatch")
					g.refuse(sensor, "site/status", qos, device.Message{Bytes: []byte("22")}, "forbidden_topic")
					g.refuseSubscription(sensor, "#")
					if i > 0 { // what came by the first listener is a replay by the other
						g.refuse(sensor, d.DataTopic(), qos, last, "replay")
					}
					last = d.Sign("22")
					g.accept(sensor, qos, last)
					g.refuse(sensor, d.DataTopic(), qos, last, "replay")
				})
				for _, end := range []func(*gate, *testator){cut, func(g *gate, t *testator) { t.takeOver(g, via, true) }} {
					m := d.Sign("22")
					w := g.leaveWill(via, mqtt5, fmt.Sprint("testator-", i), 0, lastWill{topic: d.DataTopic(), message: m.Bytes})
					g.refused = append(g.refused, delivery{m, d.DataTopic(), "a will"})
					mark := g.broker.Log().Mark()
					end(g, w)
					line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
					g.no(err)
					// Without ticks the plugin does not know for how long a client has been gone, but it has no certificate.
					if got := fields(line)["reason"]; got != "forbidden_topic" && got != "no_tls_identity" {
						g.Errorf("a will: the log says: %s", line)
					}
				}
			}

			if g.broker.Version().AtLeast(2, 0, 15) {
				g.ticksWithListenerSettings(d)
			} else {
				g.neverTicks(d)
			}
			g.nothingElse("witness")
			for _, line := range []string{"bouncer: ready ", "bouncer: stopped"} {
				if n := g.broker.Log().Count(0, broker.Contains(line)); n != 1 {
					g.Errorf("%d lines with %q, want 1: the listeners share one gateway", n, line)
				}
			}
		})
	}
	t.Run("two configuration files", func(t *testing.T) {
		t.Parallel()
		b := refuse(t, broker.Options{
			BouncerTOML: sound, PerListenerSettings: true,
			Listeners: []string{tlsListener + "plugin {plugin}\nplugin_opt_config_file {dir}/other.toml"},
		}, func(t *testing.T, b *broker.Broker) {
			write(t, b, "other.toml", strings.ReplaceAll(sound, "{dir}", b.Dir), 0o600)
		})
		want := fmt.Sprintf("bouncer: plugin_opt_config_file is %q for one listener and %q for another; all listeners share one gateway, so name the same file",
			b.Path("bouncer.toml"), b.Path("other.toml"))
		if b.Log().Count(0, broker.Contains(want)) != 1 {
			t.Errorf("the log does not say: %s", want)
		}
	})
	t.Run("a listener without the plugin", func(t *testing.T) {
		t.Parallel()
		g := newGate(t, broker.Options{PerListenerSettings: true, Listeners: []string{tlsListener}})
		_, port, err := net.SplitHostPort(g.broker.Address(1))
		g.no(err)
		_, err = g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: per_listener_settings is true and this listener has no plugin line", "listener "+port+" "))
		g.no(err)
	})
}

// neverTicks checks what the log says of a broker that never ticks: a response waits for the next message.
func (g *gate) neverTicks(d *device.Device) {
	g.Helper()
	sensor := g.connect(d, mqtt5)
	g.no(sensor.Subscribe(g.limit(), sensor.ResponseTopic(), 1))
	for every := time.Tick(50 * time.Millisecond); ; <-every {
		g.accept(sensor, 1, d.Sign("22"))
		if len(g.broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: "))) > 0 {
			break
		}
	}
	if n := len(sensor.Inbox().On(sensor.ResponseTopic())); n == 0 {
		g.Error("no response came with later messages")
	}
	g.accept(sensor, 1, d.Sign("22"))
	ticks := g.broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: "))
	if len(ticks) != 1 || !strings.Contains(ticks[0], "Mosquitto before 2.0.15 does not with per_listener_settings true. Responses wait "+
		"for the next message, and no client is disconnected for bad signatures; upgrade, or set per_listener_settings false") {
		g.Errorf("the log says that the broker does not tick: %q", ticks)
	}
}

// ticksWithListenerSettings checks that a response comes by itself, and that the log has nothing to say about ticks once a
// broker that has none would be known for it.
func (g *gate) ticksWithListenerSettings(d *device.Device) {
	g.Helper()
	sensor := g.connect(d, mqtt5)
	g.no(sensor.Subscribe(g.limit(), sensor.ResponseTopic(), 1))
	begin := time.Now()
	g.accept(sensor, 1, d.Sign("22"))
	_, err := sensor.Inbox().WaitCount(g.limit(), sensor.ResponseTopic(), 1)
	g.no(err)
	for every := time.Tick(500 * time.Millisecond); time.Since(begin) < 6*time.Second; <-every {
		g.accept(sensor, 1, d.Sign("22"))
	}
	if lines := g.broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: ")); len(lines) > 0 {
		g.Errorf("the broker ticks, and the log says: %q", lines)
	}
}
