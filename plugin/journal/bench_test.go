package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// benchmarkMessage takes 368 bytes in the journal.
func benchmarkMessage(tb testing.TB) *Accepted {
	a := &Accepted{
		Device:     "sensor_001",
		Timestamp:  1_790_000_000,
		AcceptedAt: time.Unix(1_790_000_000, 1),
		Topic:      []byte("device/sensor_001/data"),
		Payload:    []byte(`{"temperature":22.5,"humidity":60,"note":"` + strings.Repeat("x", 190) + `"}`),
	}
	if n, err := recordSize(a); err != nil || n != 368 {
		tb.Fatalf("a record of %d bytes: %v", n, err)
	}
	return a
}

func benchmarkOptions(b *testing.B) Options {
	return Options{
		Dir:      b.TempDir(),
		MaxBytes: 32 << 30,
		Sync:     100 * time.Millisecond,
		Log:      slog.New(slog.DiscardHandler),
	}
}

func benchmarkOpen(b *testing.B, o Options, r Recovery) *Journal {
	j, err := Open(o, r)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { j.Close() })
	return j
}

// With an fsync every 100 ms in the background, as by default.
func BenchmarkAppend(b *testing.B) {
	a := benchmarkMessage(b)
	for _, sync := range []time.Duration{100 * time.Millisecond, time.Hour, 0} {
		name := "sync=" + sync.String()
		if sync == 0 {
			name = "sync=always"
		}
		b.Run(name, func(b *testing.B) {
			o := benchmarkOptions(b)
			o.Sync = sync
			j := benchmarkOpen(b, o, nothing)
			b.ReportAllocs()
			b.SetBytes(368)
			for i := 0; b.Loop(); i++ {
				a.MessageID[0], a.MessageID[1], a.MessageID[2] = byte(i), byte(i>>8), byte(i>>16)
				if _, err := j.Append(a); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSettled is what the journal takes of messages of 1 KiB from 1,000 devices that are all delivered and too young
// to be forgotten. "GiB/10min" is that of ten minutes at 10,000 a second.
func BenchmarkSettled(b *testing.B) {
	const messages = 200_000
	for b.Loop() {
		o := benchmarkOptions(b)
		o.MaxBytes, o.Keep = 1<<30, 605*time.Second
		j, err := Open(o, nothing)
		if err != nil {
			b.Fatal(err)
		}
		a := benchmarkMessage(b)
		a.Payload, a.Timestamp = make([]byte, 1024), time.Now().Unix()
		for i := range messages {
			a.Device = fmt.Sprintf("sensor_%03d", i%1000)
			a.MessageID[0], a.MessageID[1], a.MessageID[2] = byte(i), byte(i>>8), byte(i>>16)
			pos, err := j.Append(a)
			for errors.Is(err, ErrFull) { // faster than 10,000 a second
				time.Sleep(time.Millisecond)
				pos, err = j.Append(a)
			}
			if err != nil {
				b.Fatal(err)
			}
			j.Done(pos, Delivered)
		}
		least := j.Stats().Bytes
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			least = min(least, j.Stats().Bytes)
		}
		ids := float64(least-2*logStart) - float64(j.active.end-logStart)
		b.ReportMetric(ids/messages, "B/id")
		b.ReportMetric((ids/messages*6e6+3*float64(j.options.SegmentBytes))/(1<<30), "GiB/10min")
		if err := j.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	const messages = 100_000
	j := benchmarkOpen(b, benchmarkOptions(b), nothing)
	positions := make([]Position, messages)
	for i := range positions {
		positions[i], _ = j.Append(benchmarkMessage(b))
	}
	var a Accepted
	var buf []byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		var err error
		if buf, err = j.Read(positions[i*7919%messages], &a, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDone(b *testing.B) {
	j := benchmarkOpen(b, benchmarkOptions(b), nothing)
	pos, err := j.Append(benchmarkMessage(b))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		j.Done(pos, Delivered)
	}
}

// Of a million messages, half of which are delivered.
func BenchmarkRecovery(b *testing.B) {
	const messages = 1_000_000
	o := benchmarkOptions(b)
	o.Keep = 100 * 365 * 24 * time.Hour // or the ids of those that are delivered go
	j, err := Open(o, nothing)
	if err != nil {
		b.Fatal(err)
	}
	a := benchmarkMessage(b)
	for i := range messages {
		a.Device = fmt.Sprintf("sensor_%03d", i%1000)
		pos, err := j.Append(a)
		if err != nil {
			b.Fatal(err)
		}
		if i%2 == 0 {
			j.Done(pos, Delivered)
		}
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		found, pending := 0, 0
		j, err := Open(o, func(_ Position, _ *Accepted, o Outcome) {
			found++
			if o == Pending {
				pending++
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if found != messages || pending != messages/2 {
			b.Fatalf("found %d messages, %d pending", found, pending)
		}
		if err := j.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(messages)*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func nothing(Position, *Accepted, Outcome) {}
