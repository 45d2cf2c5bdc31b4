package webhook

import (
	"context"
	"testing"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/testkit"
)

// BenchmarkOneDevice measures what one device gets through, a message at a time, to a backend that answers in one segment
// and to one that writes header and body apart, over one connection that is kept.
func BenchmarkOneDevice(b *testing.B) {
	for _, apart := range []bool{false, true} {
		name := "one segment"
		if apart {
			name = "two segments"
		}
		b.Run(name, func(b *testing.B) {
			s := backendOf(b, nil, func(c *talk) bool { return c.segments(apart) })
			store := &endless{m: message("", 1)}
			f, err := forwarder(Config{URL: s.url, Concurrency: 1}, store, nil, &testkit.Log{})
			if err != nil {
				b.Fatal(err)
			}
			for n := range b.N {
				f.Restore("sensor_001", uint64(n), len(store.m.Payload))
			}
			b.ResetTimer()
			f.Start(forward.Counts{})
			if err := f.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if n := s.accepted.Load(); n != 1 {
				b.Fatalf("%d connections", n)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
