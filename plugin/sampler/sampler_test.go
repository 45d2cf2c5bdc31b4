package sampler

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// lines is a slog.Handler's target that counts.
type lines struct{ text strings.Builder }

func (l *lines) Write(p []byte) (int, error) { return l.text.Write(p) }
func (l *lines) count(part string) int       { return strings.Count(l.text.String(), part) }

func TestOneClientAndAllTogether(t *testing.T) {
	s, start := New(), time.Unix(1_800_000_000, 0)
	count := func(now time.Time, client string, n int, isError bool) (allowed int) {
		for range n {
			if s.Allow(now, []byte(client), "line", isError) {
				allowed++
			}
		}
		return allowed
	}
	if n := count(start, "sensor_001", 1000, false); n != ClientBurst {
		t.Errorf("one client at once: %d lines, want %d", n, ClientBurst)
	}
	if n := count(start.Add(10*time.Second), "sensor_001", 1000, false); n != 10*ClientPerSecond {
		t.Errorf("one client in 10 s: %d lines, want %d", n, 10*ClientPerSecond)
	}
	later, all := start.Add(time.Hour), 0
	for i := range 5000 {
		all += count(later, fmt.Sprint("sensor_", i), 3, false)
	}
	if all != Burst {
		t.Errorf("all at once: %d lines, want %d", all, Burst)
	}
	if !s.Allow(later, []byte("sensor_x"), "line", true) {
		t.Error("warnings leave no room for an error")
	}
	for i := range 5000 {
		count(later.Add(time.Hour), fmt.Sprint("sensor_", i), 1, true)
	}
	before := s.errors
	if s.Allow(later.Add(time.Hour), []byte("one more"), "line", true); s.errors != before {
		t.Error("errors are not bounded")
	}
}

func TestWhatIsLeftOutIsCountedByKind(t *testing.T) {
	s, now := New(), time.Unix(1_800_000_000, 0)
	for range ClientBurst + 7 {
		s.Allow(now, []byte("a"), "refused", false)
	}
	for range 5 {
		s.Allow(now, []byte("a"), "unreadable", false)
	}
	for i := range 10 * maxKinds {
		s.Allow(now, []byte("a"), fmt.Sprint("kind ", i), false)
	}
	if len(s.leftOut) > maxKinds+1 {
		t.Errorf("%d kinds are kept", len(s.leftOut))
	}
	count, kinds := s.Report(now)
	if count != 12+10*maxKinds || !strings.Contains(kinds, "refused: 7") || !strings.Contains(kinds, "unreadable: 5") || !strings.Contains(kinds, "others: ") {
		t.Errorf("%d left out, %q", count, kinds)
	}
	if count, _ := s.Report(now.Add(time.Minute)); count != 0 {
		t.Error("reported twice")
	}
	s.Allow(now, []byte("a"), "refused", false)
	if count, _ := s.Report(now.Add(reportEvery / 2)); count != 0 {
		t.Error("reported again within a second")
	}
}

// Every line with an attribute of a client's is sampled, wherever the logger got it; the others are not.
func TestHandler(t *testing.T) {
	for name, log := range map[string]func(*slog.Logger){
		"device":  func(l *slog.Logger) { l.Warn("line", "error", "x", "device", "sensor_001") },
		"client":  func(l *slog.Logger) { l.Warn("line", "client", "c") },
		"topic":   func(l *slog.Logger) { l.Warn("line", "topic", "t") },
		"address": func(l *slog.Logger) { l.Warn("line", "address", "192.0.2.1") },
		"panic":   func(l *slog.Logger) { l.Error("line", "where", "http") },
		"with":    func(l *slog.Logger) { l.With("device", "sensor_001").WithGroup("g").Warn("line", "x", 1) },
	} {
		out := new(lines)
		logger := slog.New(New().Handler(slog.NewTextHandler(out, nil)))
		for range 10 * ClientBurst {
			log(logger)
		}
		if n := out.count("msg=line"); n < ClientBurst || n > ClientBurst+5 {
			t.Errorf("%s: %d lines, want %d and what a slow machine adds", name, n, ClientBurst)
		}
		for range 1000 {
			logger.Warn("of the operator's", "devices", 3)
		}
		if n := out.count("operator"); n != 1000 {
			t.Errorf("%s: %d lines of 1000 that no client can provoke", name, n)
		}
	}
}

func TestAllowTakesNoMemory(t *testing.T) {
	s, client, now := New(), []byte("sensor_001"), time.Now()
	s.leftOut["line"] = 0
	if n := testing.AllocsPerRun(1000, func() { s.Allow(now, client, "line", false) }); n != 0 {
		t.Errorf("%v allocations a line", n)
	}
}
