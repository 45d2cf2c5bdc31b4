// Package bench measures what the plugin costs the real broker.
package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	packets3 "github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// benchPayload is the payload of docs/envelope.md, so that an envelope has some 260 bytes.
const benchPayload = `{"temperature":22.5,"humidity":60,"battery":3.71,"unit":"degC"}`

// limit bounds every single wait; only a failing benchmark waits that long.
const limit = 20 * time.Second

// runTime is how long a broker is under load at a time: short, so that both brokers of a pair find the same machine.
const runTime = 500 * time.Millisecond

// A sink is a backend that takes everything at once, with 204 and no body.
type sink struct {
	taken atomic.Int64 // messages
	gone  bool         // it takes nothing, and nothing more is sent to it
	url   string
	body  func([]byte) // given every request's, if not nil; set before the first
}

func startSink(b *testing.B) *sink {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &sink{url: "http://" + listener.Addr().String() + "/device/{device_id}/data"}
	server := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
		if s.gone {
			ctx.SetStatusCode(fasthttp.StatusGone)
			return
		}
		ctx.SetStatusCode(fasthttp.StatusNoContent)
		s.taken.Add(events(ctx.PostBody()))
		if s.body != nil {
			s.body(ctx.PostBody())
		}
	}}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	b.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			b.Error(err)
		}
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	return s
}

// used is what a broker spent.
type used struct {
	thread  time.Duration // its own thread
	process time.Duration // all threads, the plugin's included
}

func usedBy(b *testing.B, p *broker.Process) (u used) {
	b.Helper()
	var err error
	if u.thread, err = p.ThreadTime(); err != nil {
		b.Fatal(err)
	}
	if u.process, err = p.CPUTime(); err != nil {
		b.Fatal(err)
	}
	return u
}

// compare runs the two brokers in turn, one pair each round, and reports what each spent for one operation, and the
// ratios of the pairs. measure returns what a broker spent in one run, and on how many operations.
func compare(b *testing.B, operation string, with, without *broker.Broker, measure func(*broker.Broker) (used, int)) {
	b.Helper()
	const plugin, bare = 0, 1
	brokers := [2]*broker.Broker{with, without}
	var thread, process, rates [2][]float64 // microseconds an operation; operations a second
	run := func(which int) {
		begin := time.Now()
		spent, n := measure(brokers[which])
		rates[which] = append(rates[which], float64(n)/time.Since(begin).Seconds())
		thread[which] = append(thread[which], float64(spent.thread.Nanoseconds())/1e3/float64(n))
		process[which] = append(process[which], float64(spent.process.Nanoseconds())/1e3/float64(n))
	}
	run(plugin) // to warm up
	run(bare)
	thread, process, rates = [2][]float64{}, [2][]float64{}, [2][]float64{}
	var ratios, processRatios []float64
	for b.Loop() {
		i := len(ratios)
		// In turn, so that a drift of the machine favours neither.
		run(i % 2)
		run(1 - i%2)
		ratios = append(ratios, thread[plugin][i]/thread[bare][i])
		processRatios = append(processRatios, process[plugin][i]/process[bare][i])
		fmt.Fprintf(os.Stderr, "%s, pair %d: thread %.2f and %.2f us a %s, ratio %.3f; process %.2f and %.2f us, ratio %.3f\n",
			b.Name(), i+1, thread[plugin][i], thread[bare][i], operation, ratios[i], process[plugin][i], process[bare][i], processRatios[i])
	}
	b.ReportMetric(0, "ns/op")
	for which, name := range []string{"plugin", "bare"} {
		b.ReportMetric(median(thread[which]), name+"-thread-us/"+operation)
		b.ReportMetric(median(process[which]), name+"-process-us/"+operation)
		b.ReportMetric(median(rates[which]), name+"-"+operation+"/s")
	}
	b.ReportMetric(median(ratios), "thread-ratio")
	b.ReportMetric(slices.Min(ratios), "thread-ratio-min")
	b.ReportMetric(slices.Max(ratios), "thread-ratio-max")
	b.ReportMetric(median(processRatios), "process-ratio")
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// names are n device ids.
func names(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("sensor_%03d", i))
	}
	return ids
}

// pair starts two brokers that differ in nothing but the plugin.
func pair(b *testing.B, options broker.Options) (with, without *broker.Broker) {
	b.Helper()
	options.Quiet = true
	with = broker.Start(b, options)
	options.WithoutPlugin = true
	return with, broker.Start(b, options)
}

func devicesOf(b *testing.B, of *broker.Broker, ids []string) (devices []*device.Device) {
	b.Helper()
	for _, id := range ids {
		d, err := of.Device(id)
		if err != nil {
			b.Fatal(err)
		}
		devices = append(devices, d)
	}
	return devices
}

// publish runs a load and returns how many publishes were accepted: all.
func publish(b *testing.B, load device.Load) int {
	b.Helper()
	report, err := load.Run(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	if report.Refused > 0 || report.Accepted == 0 {
		b.Fatalf("%d publishes were accepted and %d refused", report.Accepted, report.Refused)
	}
	return report.Accepted
}

// until waits for what other processes do.
func until(b *testing.B, what string, done func() bool) {
	b.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// BenchmarkBrokerPublish compares the broker's processor time for one publish, with the plugin and without: ten
// connections over TLS, MQTT 5, QoS 1, a window of 50, as fast as it goes.
//
//   - delivered: accepted on a gated topic; the process's time includes the delivery of every message to the backend.
//   - held: the same, but the backend is gone, so that nothing beside the thread takes the processors and their caches.
//   - elsewhere: on another topic, of clients who are no devices, of which the plugin has nothing to decide: what it costs
//     to have a plugin with threads at all.
func BenchmarkBrokerPublish(b *testing.B) {
	devices := names(10)
	others := make([]string, len(devices))
	for i, id := range devices {
		others[i] = "client_" + id
	}
	for _, c := range []struct {
		name      string
		gone      bool
		topic     string // "": the device's own
		clients   []string
		delivered bool
	}{
		{"delivered", false, "", devices, true},
		{"held", true, "", devices, false},
		{"elsewhere", false, "plant/7/state", others, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			backend := startSink(b)
			backend.gone = c.gone
			with, without := pair(b, broker.Options{Devices: devices, BackendURL: backend.url})
			compare(b, "publish", with, without, func(of *broker.Broker) (used, int) {
				taken := backend.taken.Load()
				before := usedBy(b, of.Process())
				n := publish(b, device.Load{
					Devices: devicesOf(b, of, c.clients), Window: 50, Burst: 25, Duration: runTime,
					Payload: []byte(benchPayload), Topic: c.topic,
				})
				if of == with && c.delivered {
					until(b, "the delivery to the backend", func() bool { return backend.taken.Load() == taken+int64(n) })
				}
				after := usedBy(b, of.Process())
				return used{after.thread - before.thread, after.process - before.process}, n
			})
		})
	}
}

// BenchmarkBrokerDelivery compares the broker's processor time for the delivery of one message to one of 100 subscribers,
// who are no devices, connected without TLS and subscribed with QoS 0: nothing is cheaper for a broker, so that nothing
// shows more of what the plugin adds.
func BenchmarkBrokerDelivery(b *testing.B) {
	const subscribers = 100
	for _, c := range []struct {
		name, publisher, topic string
	}{
		{"ungated", "publisher", "plant/7/state"},
		{"gated", "sensor_001", "device/sensor_001/data"},
	} {
		b.Run(c.name, func(b *testing.B) {
			backend := startSink(b)
			with, without := pair(b, broker.Options{
				Devices: []string{"sensor_001"}, BackendURL: backend.url,
				Conf: "allow_anonymous true", Listeners: []string{""},
			})
			var listeners [2][]*listener
			for i, of := range []*broker.Broker{with, without} {
				for n := range subscribers {
					listeners[i] = append(listeners[i], listen(b, of.Address(1), fmt.Sprintf("dashboard-%d", n), c.topic))
				}
			}
			compare(b, "delivery", with, without, func(of *broker.Broker) (used, int) {
				own := listeners[0]
				if of == without {
					own = listeners[1]
				}
				for _, l := range own {
					l.received.Store(0)
					l.wakeAt(16 << 10)
				}
				before := usedBy(b, of.Process())
				n := publish(b, device.Load{
					Devices: devicesOf(b, of, []string{c.publisher}), Window: 10, Duration: runTime,
					Payload: []byte(benchPayload), Topic: c.topic,
				})
				after := usedBy(b, of.Process())
				for _, l := range own {
					l.wakeAt(1)
					until(b, "the delivery to a subscriber", func() bool { return l.received.Load() == int64(n) })
				}
				return used{after.thread - before.thread, after.process - before.process}, n * subscribers
			})
		})
	}
}

// A listener is a subscriber that counts what comes.
type listener struct {
	b        *testing.B
	conn     *net.TCPConn
	received atomic.Int64
}

// listen connects without TLS, by MQTT 3.1.1, and subscribes.
func listen(b *testing.B, addr, username, topic string) *listener {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	l := &listener{b: b, conn: conn.(*net.TCPConn)}
	connect := packets3.NewControlPacket(packets3.Connect).(*packets3.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion, connect.CleanSession = "MQTT", 4, true
	connect.ClientIdentifier, connect.UsernameFlag, connect.Username = username, true, username
	subscribe := packets3.NewControlPacket(packets3.Subscribe).(*packets3.SubscribePacket)
	subscribe.MessageID, subscribe.Topics, subscribe.Qoss = 1, []string{topic}, []byte{0}
	for _, packet := range []packets3.ControlPacket{connect, subscribe} {
		if err := packet.Write(conn); err != nil {
			b.Fatal(err)
		}
		answer, err := packets3.ReadPacket(conn)
		if err != nil {
			b.Fatal(err)
		}
		switch a := answer.(type) {
		case *packets3.ConnackPacket:
			if a.ReturnCode != 0 {
				b.Fatalf("CONNACK %d", a.ReturnCode)
			}
		case *packets3.SubackPacket:
			if a.ReturnCodes[0] != 0 {
				b.Fatalf("SUBACK %d", a.ReturnCodes[0])
			}
		}
	}
	go l.count()
	return l
}

// wakeAt has the listener wait until so many bytes have come. One that took every message by itself would have to be
// woken for each, at the broker's expense, which a client on another machine does not.
func (l *listener) wakeAt(bytes int) {
	l.b.Helper()
	raw, err := l.conn.SyscallConn()
	if err == nil {
		var setting error
		err = raw.Control(func(fd uintptr) { setting = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes) })
		err = errors.Join(err, setting)
	}
	if err != nil {
		l.b.Fatal(err)
	}
}

// count counts the publishes that come, none longer than the buffer, until the connection ends.
func (l *listener) count() {
	buffer := make([]byte, 64<<10)
	filled := 0
	for {
		n, err := l.conn.Read(buffer[filled:])
		filled += n
		if err != nil {
			return
		}
		at, packets := 0, 0
		for {
			length, size := remainingLength(buffer[at:filled])
			if size == 0 || at+size+length > filled {
				break
			}
			at += size + length
			packets++
		}
		l.received.Add(int64(packets))
		filled = copy(buffer, buffer[at:filled])
	}
}

// remainingLength reads a packet's fixed header (MQTT 3.1.1, 2.2): how much follows it, and its own size, 0 if it is not
// complete.
func remainingLength(packet []byte) (length, size int) {
	for i := 1; i < len(packet); i++ {
		length |= int(packet[i]&0x7f) << (7 * (i - 1))
		if packet[i] < 0x80 {
			return length, i + 1
		}
	}
	return 0, 0
}

// BenchmarkCallback measures in the broker how long the plugin's callbacks take, from their entry in C to their return: the
// access check and the message of an accepted publish, as the broker does its other work in between. The library is one
// that was built with the tag timed. What a callback waits because the processor is taken from the broker is in the
// higher percentiles.
func BenchmarkCallback(b *testing.B) {
	plugin := os.Getenv("BOUNCER_TIMED_SO")
	if plugin == "" {
		b.Skip("BOUNCER_TIMED_SO names no library that was built with -tags timed: run make bench-callback")
	}
	for _, c := range []struct {
		name string
		load device.Load
	}{
		{"2000 a second", device.Load{Window: 50, Rate: 2000}},
		{"flat out", device.Load{Window: 50, Burst: 25}},
	} {
		b.Run(c.name, func(b *testing.B) {
			backend := startSink(b)
			ids := names(10)
			of := broker.Start(b, broker.Options{Devices: ids, BackendURL: backend.url, Quiet: true, Plugin: plugin})
			c.load.Devices, c.load.Duration, c.load.Payload = devicesOf(b, of, ids), time.Second, []byte(benchPayload)
			for b.Loop() {
				taken := backend.taken.Load()
				n := publish(b, c.load)
				until(b, "the delivery to the backend", func() bool { return backend.taken.Load() == taken+int64(n) })
			}
			if err := of.Stop(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op")
			for _, callback := range []string{"write", "message", "publish"} {
				lines := of.Log().Find(0, broker.Contains("bouncer: timed callback="+callback+" "))
				if len(lines) != 1 {
					b.Fatalf("%d lines in the log on the callback %s", len(lines), callback)
				}
				for _, field := range strings.Fields(lines[0]) {
					name, value, _ := strings.Cut(field, "=")
					if d, err := time.ParseDuration(value); err == nil && (name == "p10" || name == "p50" || name == "p90" || name == "p99") {
						b.ReportMetric(float64(d.Nanoseconds()), callback+"-"+name+"-ns")
					}
				}
			}
		})
	}
}
