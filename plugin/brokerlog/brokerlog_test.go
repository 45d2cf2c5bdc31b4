package brokerlog

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// aLog collects what is written to the broker's log.
type aLog []string

func (l *aLog) write(_ slog.Level, line string) { *l = append(*l, line) }

func TestQueueIsBoundedAndOrdered(t *testing.T) {
	q, log := NewQueue(), aLog{}
	l := slog.New(q).With("part", "forward")
	for range maxWaiting + 3 {
		l.Info("tried", "device", "sensor_001", "error", "a b")
	}
	l.Debug("not for the log")
	q.Drain(log.write)
	if len(log) != maxWaiting+1 {
		t.Fatalf("%d lines", len(log))
	}
	if want := `tried part=forward device=sensor_001 error="a b"`; log[0] != want {
		t.Errorf("got %q, want %q", log[0], want)
	}
	if want := "log lines dropped, more came than the log can take count=3"; log[len(log)-1] != want {
		t.Errorf("got %q, want %q", log[len(log)-1], want)
	}
	q.Drain(log.write)
	if len(log) != maxWaiting+1 {
		t.Error("lines were written twice")
	}
}

// TestNoValuePassesForAnother: whatever a value is, the line has one line, and outside of quotes only the keys that it was
// given.
func TestNoValuePassesForAnother(t *testing.T) {
	for value, want := range map[string]string{
		"sensor_001":           `v=sensor_001`,
		"device/x/#":           `v=device/x/#`,
		"":                     `v=""`,
		"a b":                  `v="a b"`,
		"a=b":                  `v="a=b"`,
		`"`:                    `v="\""`,
		"a\nrefused device=b":  `v="a\nrefused device=b"`,
		"a\r\x1b[31m\x00":      `v="a\r\x1b[31m\x00"`,
		"a\u2028b":             `v="a\u2028b"`,
		"a\u00a0reason\u00a0b": `v="a\u00a0reason\u00a0b"`,
		"a\u202eb":             `v="a\u202eb"`,
		"a\x7fb":               `v=a\x7fb`,
		"\xff":                 `v="\xff"`,
		`\`:                    `v=\`,
		"{\"a\":1}":            `v="{\"a\":1}"`,
		"msg":                  `v=msg`,
	} {
		if got := Line("said", "v", value, "n", 1); got != "said "+want+" n=1" {
			t.Errorf("%q: %s", value, got)
		}
	}
	if got := Line("said"); got != "said" {
		t.Errorf("%q", got)
	}
	if got := Line("said", "error", errors.New("a b"), "took", time.Second, "of", []string{"a", "b"}, "level", "x"); got != `said error="a b" took=1s of="[a b]" level=x` {
		t.Error(got)
	}
}

func TestGroups(t *testing.T) {
	q, log := NewQueue(), aLog{}
	l := slog.New(q).With("a", 1).WithGroup("g").With("b", 2)
	l.With("d", 4).Info("x", "c", 3)
	l.Warn("y", slog.Group("h", "e", "f g"))
	q.Drain(log.write)
	if got := strings.Join(log, "\n"); got != "x a=1 g.b=2 g.d=4 g.c=3\ny a=1 g.b=2 g.h.e=\"f g\"" {
		t.Error(got)
	}
}
