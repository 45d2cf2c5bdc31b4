package plugin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/registry"
)

// BenchmarkRecovery measures the start of a gateway whose journal holds a million messages of a thousand devices, half of
// them delivered: replay memory and lanes are rebuilt from it.
func BenchmarkRecovery(b *testing.B) {
	const messages, devices = 1_000_000, 1000
	g := startGateway(b, "concurrency = 1\n[publish]\ntolerance = \"1h\"\n[journal]\nmax_bytes = \"64GiB\"\n")
	g.change(func(ctx context.Context, s *registry.Store) (err error) {
		for n := range 100 {
			err = errors.Join(err, s.Add(ctx, fmt.Sprintf("dev_%03d", n), registry.Secret("s")))
		}
		return err
	})
	g.Stop()
	g.silenceBackend()
	dir := filepath.Dir(g.file)
	j, err := journal.Open(journal.Options{
		Dir: filepath.Join(dir, journal.DirName), MaxBytes: 64 << 30, Sync: time.Second, Keep: time.Hour, Log: slog.New(slog.DiscardHandler),
	}, func(journal.Position, *journal.Accepted, journal.Outcome) {})
	if err != nil {
		b.Fatal(err)
	}
	a := journal.Accepted{AcceptedAt: time.Now(), Timestamp: time.Now().Unix(), Payload: []byte(`{"temperature":22.5,"humidity":60,"battery":3.71}`)}
	for n := range messages {
		a.Device = fmt.Sprintf("dev_%03d", n*7919%devices) // a hundred of them are registered
		a.Topic = []byte("device/" + a.Device + "/data")
		binary.BigEndian.PutUint64(a.MessageID[:], uint64(n)*0x9e3779b97f4a7c15)
		pos, err := j.Append(&a)
		if err != nil {
			b.Fatal(err)
		}
		if n%2 == 0 {
			j.Done(pos, journal.Delivered)
		}
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		again, err := Start(g.file, g.host)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if s, ids := again.Stats(), figure(b, again.service.metrics, "replay_ids"); s.Accounts.Pending != messages/2 || ids != messages {
			b.Fatalf("%+v, %v remembered", s.Accounts, ids)
		}
		again.Stop()
		b.StartTimer()
	}
}

// silenceBackend makes the gateway use, after its next start, a backend that takes connections and never answers.
func (g *aGateway) silenceBackend() {
	g.t.Helper()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = backend.Close() })
	text, err := os.ReadFile(g.file)
	if err != nil {
		g.t.Fatal(err)
	}
	silent := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).ReplaceAll(text, []byte("http://"+backend.Addr().String()))
	if err := os.WriteFile(g.file, silent, 0o600); err != nil {
		g.t.Fatal(err)
	}
}
