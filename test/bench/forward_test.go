package bench

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// fleet registers devices with a broker.
func fleet(b *testing.B, n int, sink *sink, settings map[string]any) (*broker.Broker, []*device.Device) {
	b.Helper()
	options := broker.Options{BackendURL: sink.url, Quiet: true, Settings: settings}
	for i := range n {
		options.Devices = append(options.Devices, fmt.Sprintf("sensor_%03d", i+1))
	}
	br := broker.Start(b, options)
	var devices []*device.Device
	for _, id := range options.Devices {
		d, err := br.Device(id)
		if err != nil {
			b.Fatal(err)
		}
		devices = append(devices, d)
	}
	return br, devices
}

// BenchmarkDelivery measures how many messages a second go from devices through the broker and the journal to a backend
// with keep-alive, until the last has been answered: devices, broker and backend on the same machine.
func BenchmarkDelivery(b *testing.B) {
	for _, c := range []struct {
		name     string
		settings map[string]any
	}{
		{"single", nil},
		{"batch100", map[string]any{"backend.batch": 100}},
	} {
		b.Run(c.name, func(b *testing.B) {
			sink := startSink(b)
			settings := map[string]any{"journal.max_bytes": 16 << 30}
			for key, value := range c.settings {
				settings[key] = value
			}
			if c.settings != nil {
				sink.url = sink.url[:len(sink.url)-len("/device/{device_id}/data")]
			}
			_, devices := fleet(b, 50, sink, settings)
			load := device.Load{Devices: devices, Window: 40, Burst: 20, Duration: 3 * time.Second, Payload: []byte(benchPayload)}
			var rates []float64
			for b.Loop() {
				before, begin := sink.taken.Load(), time.Now()
				report, err := load.Run(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				if report.Accepted != report.Sent {
					b.Fatalf("%d of %d accepted", report.Accepted, report.Sent)
				}
				for late := time.Now().Add(time.Minute); sink.taken.Load()-before < int64(report.Accepted); time.Sleep(time.Millisecond) {
					if time.Now().After(late) {
						b.Fatalf("%d of %d delivered", sink.taken.Load()-before, report.Accepted)
					}
				}
				rates = append(rates, float64(report.Accepted)/time.Since(begin).Seconds())
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(rates), "delivered/s")
			b.ReportMetric(slices.Min(rates), "delivered/s-min")
		})
	}
}

// BenchmarkDeliveryLatency measures the time from a device's PUBLISH to the backend's handler, at 1,000 messages a
// second from 50 devices.
func BenchmarkDeliveryLatency(b *testing.B) {
	const rate, seconds = 1000, 5
	sink := startSink(b)
	var mu sync.Mutex
	var latencies []time.Duration
	begun := time.Now()
	sink.body = func(body []byte) {
		now := time.Since(begun)
		sent, err := strconv.ParseInt(string(body), 10, 64)
		if err != nil {
			b.Error(err)
		}
		mu.Lock()
		latencies = append(latencies, now-time.Duration(sent))
		mu.Unlock()
	}
	_, devices := fleet(b, 50, sink, nil)
	var clients []*device.Raw5
	for _, d := range devices {
		c, _, err := d.ConnectRaw5(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Conn.Close()
		go func() { // the acknowledgements
			for {
				if _, err := c.Next(context.Background()); err != nil {
					return
				}
			}
		}()
		clients = append(clients, c)
	}
	for b.Loop() {
		latencies = nil
		tick := time.NewTicker(time.Second / rate)
		for n := range rate * seconds {
			<-tick.C
			i := n % len(devices)
			m := devices[i].Sign(strconv.FormatInt(int64(time.Since(begun)), 10))
			err := clients[i].Send(context.Background(), &packets5.Publish{
				Topic: devices[i].DataTopic(), QoS: 1, PacketID: uint16(n%60000 + 1), Payload: m.Bytes, Properties: &packets5.Properties{},
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		tick.Stop()
		for late := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			n := len(latencies)
			mu.Unlock()
			if n == rate*seconds {
				break
			}
			if time.Now().After(late) {
				b.Fatalf("%d messages came", n)
			}
		}
		slices.Sort(latencies)
	}
	b.ReportMetric(0, "ns/op")
	for name, p := range map[string]float64{"p50-ms": 0.5, "p99-ms": 0.99, "p99.9-ms": 0.999} {
		b.ReportMetric(float64(latencies[int(float64(len(latencies))*p)].Microseconds())/1e3, name)
	}
}

// events counts the messages in a request's body: one, or a batch of CloudEvents.
func events(body []byte) int64 { return max(1, int64(bytes.Count(body, []byte(`"specversion"`)))) }
