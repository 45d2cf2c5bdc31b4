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

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestMountPoint has listeners that put something before each topic, which may make a gated topic of one that is not, and
// the other way round.
func TestMountPoint(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices:   []string{"sensor_001"},
		Settings:  map[string]any{"publish.topics": []string{"device/+/data", "site/device/+/data"}},
		Listeners: []string{harness.TLSListener + "mount_point site/", harness.TLSListener + "mount_point device/", harness.TLSListener + "mount_point other/"},
	})
	g.Watch()
	d := g.Device("sensor_001")
	unsigned := device.Message{Bytes: []byte("22")}
	g.EachWay(func(g *harness.Gateway, p harness.Protocol, qos byte) {
		for i, mount := range []struct{ prefix, topic string }{
			{"site/", "device/sensor_001/data"}, {"device/", "sensor_001/data"},
		} {
			c := g.Connect(d.Via(g.Broker.Address(i+1)), p)
			send := func(m device.Message, reason string) {
				g.Helper()
				mark := g.Broker.Log().Mark()
				if reason == "accepted" {
					g.Expect(mount.prefix+mount.topic, m)
				} else {
					g.ExpectRefusal(mount.topic, m, "through a mount point")
				}
				ack := g.Publish(c, mount.topic, qos, m.Bytes)
				if reason == "accepted" {
					if !ack.Accepted() {
						g.Errorf("a good message: %v", ack)
					}
					g.Delivered(mount.prefix+mount.topic, m.Bytes)
					return
				}
				if ack.Code != p.Refusal(qos) {
					g.Errorf("%s: %v", reason, ack)
				}
				line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused "))
				g.Must(err)
				if got := harness.Fields(line); got["reason"] != reason || got["topic"] != mount.prefix+mount.topic {
					g.Errorf("want %s on %s; the log says: %s", reason, mount.prefix+mount.topic, line)
				}
			}
			good := d.Sign("22")
			send(unsigned, "malformed")
			send(good, "accepted")
			send(good, "replay")
		}
		// A mount point that no filter has leaves the device without a topic, and not with one more.
		mark := g.Broker.Log().Mark()
		g.ExpectRefusal("other/device/sensor_001/data", unsigned, "through a mount point")
		if ack := g.Publish(g.Connect(d.Via(g.Broker.Address(3)), p), d.DataTopic(), qos, unsigned.Bytes); ack.Code != p.Refusal(qos) {
			g.Errorf("a topic that is gated no longer: %v", ack)
		}
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused device=sensor_001 topic=other/device/sensor_001/data reason=forbidden_topic "))
		g.Must(err)
	})
	// All that the monitor got on the mounted topics was accepted.
	left := g.AllAccepted()
	for _, r := range g.Monitor.Inbox().All() {
		i := slices.IndexFunc(left, func(d harness.Delivery) bool { return d.Topic == r.Topic && bytes.Equal(d.Bytes, r.Payload) })
		switch {
		case i >= 0:
			left = slices.Delete(left, i, i+1)
		case !strings.HasSuffix(r.Topic, "/response"):
			g.Errorf("the monitor got on %q: %q", r.Topic, r.Payload)
		}
	}
	g.NoMore("the monitor", harness.Missing(left))
	g.Must(g.Broker.Stop())
	g.NoMore("the backend", g.UnexpectedRequests())
}

// TestWebsockets has verdicts and last wills of clients that come by websockets.
func TestWebsockets(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: registered(), Listeners: []string{"protocol websockets\n" + harness.TLSListener}})
	g.Watch()
	d, w := g.Device("fresh"), g.Device("witness")
	for qos := byte(0); qos <= 2; qos++ {
		c := connectWebsocket(g, d, qos == 2)
		g.Refuse(c, d.DataTopic(), qos, device.Message{Bytes: []byte(`{"temperature":22}`)}, "malformed")
		g.Refuse(c, w.DataTopic(), qos, d.Sign("22"), "topic_mismatch")
		m := d.Sign("22")
		g.Accept(c, qos, m)
		g.Refuse(c, d.DataTopic(), qos, m, "replay")
	}

	// A will that is good as a publish, the worst of them, for each cause.
	leave := func(id string) (*harness.Testator, device.Message) {
		m := d.Sign("22")
		g.ExpectRefusal(d.DataTopic(), m, id)
		conn := dialWebsocket(g, d)
		p := packets3.NewControlPacket(packets3.Connect).(*packets3.ConnectPacket)
		p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.CleanSession, p.Keepalive = "MQTT", 4, id, true, 30
		p.WillFlag, p.WillQos, p.WillTopic, p.WillMessage = true, 1, d.DataTopic(), m.Bytes
		g.Must(p.Write(conn))
		answer, err := packets3.ReadPacket(conn)
		g.Must(err)
		if connack, ok := answer.(*packets3.ConnackPacket); !ok || connack.ReturnCode != 0 {
			g.Fatalf("connecting by a websocket: %v", answer)
		}
		return &harness.Testator{Conn: conn, Device: d, Protocol: harness.MQTT311, ClientID: id}, m
	}
	refused := func(mark int, m device.Message) {
		g.Helper()
		line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused "))
		g.Must(err)
		if got := harness.Fields(line); got["reason"] != "forbidden_topic" || got["detail"] != "a last will on a gated topic is not delivered" {
			g.Errorf("the will %s; the log says: %s", m.MessageID, line)
		}
	}
	for i, end := range []func(*harness.Gateway, *harness.Testator){harness.Cut, func(g *harness.Gateway, t *harness.Testator) { t.TakeOver(g, d, true) }} {
		c, m := leave(fmt.Sprint("testator-", i))
		mark := g.Broker.Log().Mark()
		end(g, c)
		refused(mark, m)
	}
	g.Accept(g.Connect(w, harness.MQTT5), 1, w.Sign("22"))
	_, m := leave("testator at the stop")
	mark := g.Broker.Log().Mark()
	g.Must(g.Broker.Stop())
	refused(mark, m)
	<-g.Monitor.Done()
	g.NoMore("the monitor", g.UnexpectedPublishes())
	g.NoMore("the backend", g.UnexpectedRequests())
}

// dialWebsocket opens a websocket to the second listener. It is cut at the end of the (sub)test.
func dialWebsocket(g *harness.Gateway, d *device.Device) net.Conn {
	g.Helper()
	conn, err := mqtt.NewWebsocket("wss://"+g.Broker.Address(1)+"/mqtt", d.TLS(), harness.Patience, nil, &mqtt.WebsocketOptions{})
	g.Must(err)
	g.Cleanup(func() { conn.Close() })
	return conn
}

// connectWebsocket connects to the second listener, by MQTT 3.1.1.
func connectWebsocket(g *harness.Gateway, d *device.Device, cleanSession bool) *harness.Client {
	g.Helper()
	c, err := d.ConnectV3(g.Limit(), func(o *mqtt.ClientOptions) {
		o.SetCleanSession(cleanSession)
		o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return dialWebsocket(g, d), nil })
	})
	g.Must(err)
	g.Cleanup(func() { _ = c.Close() })
	return &harness.Client{Client: c, Device: d, Protocol: harness.MQTT311, Username: d.ID}
}

// TestPerListenerSettings has the plugin under one listener or two. On 2.0.11 it is then never called at regular times.
func TestPerListenerSettings(t *testing.T) {
	const pluginLines = "plugin {plugin}\nplugin_opt_config_file {dir}/bouncer.toml\n"
	for _, c := range []struct {
		name      string
		listeners []string
	}{
		{"one listener", nil},
		{"two listeners", []string{harness.TLSListener + pluginLines}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := harness.New(t, broker.Options{
				Devices: []string{"sensor_001", "witness"}, PerListenerSettings: true, Listeners: c.listeners,
			})
			g.Watch()
			d := g.Device("sensor_001")
			var last device.Message
			for i := range 1 + len(c.listeners) {
				via := d.Via(g.Broker.Address(i))
				g.EachWay(func(g *harness.Gateway, p harness.Protocol, qos byte) {
					sensor := g.Connect(via, p)
					g.Refuse(sensor, d.DataTopic(), qos, device.Message{Bytes: []byte("22")}, "malformed")
					g.Refuse(sensor, "device/witness/data", qos, d.Sign("22"), "topic_mismatch")
					g.Refuse(sensor, "site/status", qos, device.Message{Bytes: []byte("22")}, "forbidden_topic")
					g.RefuseSubscription(sensor, "#")
					if i > 0 { // what came by the first listener is a replay by the other
						g.Refuse(sensor, d.DataTopic(), qos, last, "replay")
					}
					last = d.Sign("22")
					g.Accept(sensor, qos, last)
					g.Refuse(sensor, d.DataTopic(), qos, last, "replay")
				})
				for _, end := range []func(*harness.Gateway, *harness.Testator){harness.Cut, func(g *harness.Gateway, t *harness.Testator) { t.TakeOver(g, via, true) }} {
					m := d.Sign("22")
					w := g.LeaveWill(via, harness.MQTT5, fmt.Sprint("testator-", i), 0, harness.LastWill{Topic: d.DataTopic(), Message: m.Bytes})
					g.ExpectRefusal(d.DataTopic(), m, "a will")
					mark := g.Broker.Log().Mark()
					end(g, w)
					line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused "))
					g.Must(err)
					// Without ticks the plugin does not know for how long a client has been gone, but it has no certificate.
					if got := harness.Fields(line)["reason"]; got != "forbidden_topic" && got != "no_tls_identity" {
						g.Errorf("a will: the log says: %s", line)
					}
				}
			}

			if g.Broker.Version().AtLeast(2, 0, 15) {
				ticksWithListenerSettings(g, d)
			} else {
				neverTicks(g, d)
			}
			g.NothingElse("witness")
			for _, line := range []string{"bouncer: ready ", "bouncer: stopped"} {
				if n := g.Broker.Log().Count(0, broker.Contains(line)); n != 1 {
					g.Errorf("%d lines with %q, want 1: the listeners share one gateway", n, line)
				}
			}
		})
	}
	t.Run("two configuration files", func(t *testing.T) {
		t.Parallel()
		b := harness.StartRefused(t, broker.Options{
			BouncerTOML: harness.SoundTOML, PerListenerSettings: true,
			Listeners: []string{harness.TLSListener + "plugin {plugin}\nplugin_opt_config_file {dir}/other.toml"},
		}, func(t *testing.T, b *broker.Broker) {
			harness.WriteFile(t, b, "other.toml", strings.ReplaceAll(harness.SoundTOML, "{dir}", b.Dir), 0o600)
		})
		want := fmt.Sprintf("bouncer: plugin_opt_config_file is %q for one listener and %q for another; all listeners share one gateway, so name the same file",
			b.Path("bouncer.toml"), b.Path("other.toml"))
		if b.Log().Count(0, broker.Contains(want)) != 1 {
			t.Errorf("the log does not say: %s", want)
		}
	})
	t.Run("a listener without the plugin", func(t *testing.T) {
		t.Parallel()
		g := harness.New(t, broker.Options{PerListenerSettings: true, Listeners: []string{harness.TLSListener}})
		_, port, err := net.SplitHostPort(g.Broker.Address(1))
		g.Must(err)
		_, err = g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: per_listener_settings is true and this listener has no plugin line", "listener "+port+" "))
		g.Must(err)
	})
}

// neverTicks checks what the log says of a broker that never ticks: a response waits for the next message.
func neverTicks(g *harness.Gateway, d *device.Device) {
	g.Helper()
	sensor := g.Connect(d, harness.MQTT5)
	g.Must(sensor.Subscribe(g.Limit(), sensor.ResponseTopic(), 1))
	for every := time.Tick(50 * time.Millisecond); ; <-every {
		g.Accept(sensor, 1, d.Sign("22"))
		if len(g.Broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: "))) > 0 {
			break
		}
	}
	if n := len(sensor.Inbox().On(sensor.ResponseTopic())); n == 0 {
		g.Error("no response came with later messages")
	}
	g.Accept(sensor, 1, d.Sign("22"))
	ticks := g.Broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: "))
	if len(ticks) != 1 || !strings.Contains(ticks[0], "Mosquitto before 2.0.15 does not with per_listener_settings true. Responses wait "+
		"for the next message, and no client is disconnected for bad signatures; upgrade, or set per_listener_settings false") {
		g.Errorf("the log says that the broker does not tick: %q", ticks)
	}
}

// ticksWithListenerSettings checks that a response comes by itself, and that the log has nothing to say about ticks once a
// broker that has none would be known for it.
func ticksWithListenerSettings(g *harness.Gateway, d *device.Device) {
	g.Helper()
	sensor := g.Connect(d, harness.MQTT5)
	g.Must(sensor.Subscribe(g.Limit(), sensor.ResponseTopic(), 1))
	begin := time.Now()
	g.Accept(sensor, 1, d.Sign("22"))
	_, err := sensor.Inbox().WaitCount(g.Limit(), sensor.ResponseTopic(), 1)
	g.Must(err)
	for every := time.Tick(500 * time.Millisecond); time.Since(begin) < 6*time.Second; <-every {
		g.Accept(sensor, 1, d.Sign("22"))
	}
	if lines := g.Broker.Log().Find(0, broker.Contains("bouncer: the broker never ticks: ")); len(lines) > 0 {
		g.Errorf("the broker ticks, and the log says: %q", lines)
	}
}
