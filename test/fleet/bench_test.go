package fleet

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// devicesOf registers devices with a broker and starts it.
func devicesOf(b *testing.B, n int, settings map[string]any) (*broker.Broker, []*device.Device) {
	b.Helper()
	o := broker.Options{Quiet: true, Settings: settings}
	for i := range n {
		o.Devices = append(o.Devices, fmt.Sprintf("gw-a.%d", i+1))
	}
	br := broker.Start(b, o)
	var devices []*device.Device
	for _, id := range o.Devices {
		d, err := br.Device(id)
		must(b, err)
		devices = append(devices, d)
	}
	return br, devices
}

// BenchmarkPuback measures the time from PUBLISH to PUBACK at 500 messages a second of 20 devices: with an HTTP backend, with NATS
// up, hung, and down, in turn. The figures are medians over the rounds.
func BenchmarkPuback(b *testing.B) {
	c := startCluster(b, clusterOptions{nodes: 3}).up()
	_, http := devicesOf(b, 20, map[string]any{"backend.url": backend.Start(b).URL()})
	_, nats := devicesOf(b, 20, c.settings("gw-a", nil))
	each := func(s syscall.Signal) {
		for _, n := range c.nodes {
			n.signal(s)
		}
	}
	p50, p99 := map[string][]time.Duration{}, map[string][]time.Duration{}
	measure := func(name string, devices []*device.Device) {
		l := device.Load{Devices: devices, Window: 50, Rate: 500, Duration: 4 * time.Second, Payload: []byte(harness.Payload)}
		r, err := l.Run(context.Background())
		must(b, err)
		if r.Accepted != r.Sent {
			b.Fatalf("%s: %d of %d accepted", name, r.Accepted, r.Sent)
		}
		p50[name], p99[name] = append(p50[name], r.Percentile(50)), append(p99[name], r.Percentile(99))
	}
	for b.Loop() {
		measure("http", http)
		measure("up", nats)
		each(syscall.SIGSTOP)
		measure("hung", nats)
		each(syscall.SIGCONT)
		c.ready()
		for _, n := range c.nodes {
			n.kill()
		}
		measure("down", nats)
		c.up()
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds())
	}
	for _, name := range []string{"http", "up", "hung", "down"} {
		b.ReportMetric(median(p50[name]), name+"-p50-us")
		b.ReportMetric(median(p99[name]), name+"-p99-us")
	}
}

// BenchmarkUplink measures how many messages a second of a backlog go from one gateway's journal into a stream of three replicas,
// between a tenth and nine tenths of the backlog.
func BenchmarkUplink(b *testing.B) {
	for _, concurrency := range []int{64, 256} {
		b.Run(fmt.Sprint("concurrency", concurrency), func(b *testing.B) {
			c := startCluster(b, clusterOptions{nodes: 3}).up()
			_, js := c.client()
			br, devices := devicesOf(b, 500, c.settings("gw-a", map[string]any{"backend.concurrency": concurrency}))
			var rates []float64
			for b.Loop() {
				for _, n := range c.nodes {
					n.signal(syscall.SIGSTOP)
				}
				l := device.Load{Devices: devices, Window: 40, Burst: 20, Duration: 5 * time.Second, Rate: 12_000, Payload: []byte(harness.Payload)}
				r, err := l.Run(context.Background())
				must(b, err)
				for _, n := range c.nodes {
					n.signal(syscall.SIGCONT)
				}
				rates = append(rates, drainRate(b, br, js, uint64(r.Accepted)))
			}
			slices.Sort(rates)
			b.ReportMetric(rates[len(rates)/2], "msg/s")
		})
	}
}

// drainRate waits until the stream has so many messages more than a tenth of them ago.
func drainRate(b *testing.B, br *broker.Broker, js jetstream.JetStream, backlog uint64) float64 {
	b.Helper()
	var first, from uint64
	var begin time.Time
	for deadline := time.Now().Add(3 * patience); ; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("the backlog of %d is not drained; the broker's log:\n%s", backlog, br.Log().Lines(0))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		s, err := js.Stream(ctx, stream)
		cancel()
		if err != nil {
			continue
		}
		now := s.CachedInfo().State.LastSeq
		switch {
		case first == 0:
			first = max(now, 1)
		case begin.IsZero() && now >= first+backlog/10:
			begin, from = time.Now(), now
		case !begin.IsZero() && now >= from+backlog*8/10:
			return float64(now-from) / time.Since(begin).Seconds()
		}
	}
}
