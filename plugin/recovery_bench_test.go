package plugin

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/journal"
)

// BenchmarkRecovery measures the start of a gateway whose journal holds a million messages of a thousand devices, half of
// them delivered: replay memory and lanes are rebuilt from it.
func BenchmarkRecovery(b *testing.B) {
	const messages, devices = 1_000_000, 1000
	g := startBench(b, 0)
	g.Stop()
	dir := filepath.Dir(g.file)
	j, err := journal.Open(journal.Options{
		Dir: filepath.Join(dir, journal.DirName), MaxBytes: 64 << 30, Sync: time.Second, Keep: time.Hour, Log: slog.New(slog.DiscardHandler),
	}, func(journal.Position, *journal.Accepted, journal.Outcome) {})
	if err != nil {
		b.Fatal(err)
	}
	a := journal.Accepted{AcceptedAt: time.Now(), Timestamp: time.Now().Unix(), Payload: []byte(`{"temperature":22.5,"humidity":60,"battery":3.71}`)}
	for n := range messages {
		a.Device = fmt.Sprintf("sensor_%03d", n*7919%devices) // a hundred of them are registered
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
		again, err := Start(g.file, silentBroker{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if s := again.Stats(); s.Accounts.Pending != messages/2 || again.seen.Len() != messages {
			b.Fatalf("%+v, %d remembered", s.Accounts, again.seen.Len())
		}
		again.Stop()
		b.StartTimer()
	}
}
