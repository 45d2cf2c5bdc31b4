package webhook

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/testkit"

	"github.com/valyala/fasthttp"
)

// BenchmarkForward measures messages from Enqueue to 2xx, client and server in one process.
func BenchmarkForward(b *testing.B) {
	run := func(b *testing.B, cfg Config) {
		store := &endless{m: message("", 1)}
		store.m.Payload = []byte(`{"temperature":22.5,"humidity":60,"status":"ok"}`)
		cfg.idle = 50 * time.Millisecond
		f, err := forwarder(cfg, store, nil, &testkit.Log{})
		if err != nil {
			b.Fatal(err)
		}
		f.Start(forward.Counts{})
		const devices = 100
		var ids [devices]string
		for d := range ids {
			ids[d] = fmt.Sprintf("sensor_%03d", d)
		}
		b.ReportAllocs()
		b.ResetTimer()
		for n := range b.N {
			f.Enqueue(ids[n%devices], uint64(n), len(store.m.Payload))
			if n%10 == 0 {
				f.Dispatch()
			}
		}
		if err := f.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if n := store.delivered.Load(); n != uint64(b.N) {
			b.Fatalf("%d of %d delivered", n, b.N)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	}
	ways := map[string]func(url string) Config{
		"single": func(url string) Config { return Config{URL: url + "/device/{device_id}/data"} },
		"signed": func(url string) Config {
			return Config{URL: url + "/device/{device_id}/data", SigningSecret: []byte("0123456789abcdef")}
		},
		"batch100": func(url string) Config { return Config{URL: url + "/data", Batch: 100} },
	}
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		b.Run(name+"/nethttp", func(b *testing.B) {
			run(b, ways[name](backend(b, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }).URL))
		})
		b.Run(name+"/fasthttp", func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			s := &fasthttp.Server{Handler: func(*fasthttp.RequestCtx) {}, CloseOnShutdown: true}
			go s.Serve(l)
			defer s.Shutdown()
			run(b, ways[name]("http://"+l.Addr().String()))
		})
	}
}

// endless is a Store of one message again and again, to measure the forwarder alone.
type endless struct {
	m         forward.Message
	delivered atomic.Uint64
}

func (s *endless) Load(_ uint64, m *forward.Message) error {
	m.Payload = append(m.Payload, s.m.Payload...)
	m.MessageID, m.Timestamp, m.AcceptedAt, m.Topic = s.m.MessageID, s.m.Timestamp, s.m.AcceptedAt, s.m.Topic
	return nil
}

func (s *endless) Delivered(uint64) { s.delivered.Add(1) }

func (s *endless) Dead(string, uint64, forward.DeadLetter) error { panic("dead") }
