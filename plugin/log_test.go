package plugin

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

// maxLine leaves room for the broker's time stamp in the 1000 bytes at which it cuts a line.
const maxLine = 900

// aLog collects what is written to the broker's log.
type aLog []string

func (l *aLog) write(_ slog.Level, line string) { *l = append(*l, line) }

func TestRefusalsAreSampledAndCounted(t *testing.T) {
	l, log := newRefusalLog(), aLog{}
	start := time.Unix(now, 0)
	for range refusalsBurst + 250 {
		l.refused(start, publish("sensor_001", nil), nil, nil, Stale, nil, log.write)
	}
	if len(log) != refusalsBurst {
		t.Fatalf("%d lines, want %d", len(log), refusalsBurst)
	}
	if want := "refused device=sensor_001 topic=device/sensor_001/data reason=stale client=c"; log[0] != want {
		t.Errorf("got %q, want %q", log[0], want)
	}
	l.flush(start.Add(time.Second), log.write)
	if want := "refused more than the log takes; lines left out count=250"; log[len(log)-1] != want {
		t.Errorf("got %q, want %q", log[len(log)-1], want)
	}
	before := len(log)
	l.flush(start.Add(3*time.Second), log.write)
	if len(log) != before {
		t.Error("the same refusals were counted twice")
	}
}

// A device that keeps failing leaves room in the log for the others.
func TestRefusalsOfOneDeviceAreSampled(t *testing.T) {
	l, log, d := newRefusalLog(), aLog{}, new(device)
	start := time.Unix(now, 0)
	for range refusalsBurst {
		l.refused(start, publish("sensor_001", nil), d, nil, BadSignature, nil, log.write)
	}
	if len(log) != deviceRefusalsBurst {
		t.Fatalf("%d lines of one device, want %d", len(log), deviceRefusalsBurst)
	}
	l.refused(start, publish("sensor_002", nil), new(device), nil, Stale, nil, log.write)
	if last := log[len(log)-1]; !strings.HasPrefix(last, "refused device=sensor_002 ") {
		t.Errorf("the other device's line is missing; last is %q", last)
	}
}

// What a publisher chose must neither break a line nor pass for another value.
func TestRefusalLineQuotesThePublishersWords(t *testing.T) {
	l, log := newRefusalLog(), aLog{}
	p := &Publish{Identity: []byte("a b\nbouncer: accepted"), ClientID: []byte("c reason=accepted"), Topic: []byte("device/\x1b[31m/data")}
	l.refused(time.Unix(now, 0), p, nil, nil, Malformed, nil, log.write)
	want := `refused device="a b\nbouncer: accepted" topic="device/\x1b[31m/data" reason=malformed client="c reason=accepted"`
	if log[0] != want {
		t.Errorf("got  %s\nwant %s", log[0], want)
	}
	p = publish(strings.Repeat("x", 70000), nil)
	p.ClientID = []byte(strings.Repeat("\xff", 70000))
	l.refused(time.Unix(now, 0), p, nil, nil, Malformed, nil, log.write)
	if len(log[1]) > maxLine {
		t.Errorf("a line of %d bytes", len(log[1]))
	}
}

func TestLogQueueIsBoundedAndOrdered(t *testing.T) {
	q, log := newLogQueue(), aLog{}
	l := slog.New(q).With("part", "forward")
	for range maxQueuedLines + 3 {
		l.Info("tried", "device", "sensor_001", "error", "a b")
	}
	l.Debug("not for the log")
	q.drain(log.write)
	if len(log) != maxQueuedLines+1 {
		t.Fatalf("%d lines", len(log))
	}
	if want := `tried part=forward device=sensor_001 error="a b"`; log[0] != want {
		t.Errorf("got %q, want %q", log[0], want)
	}
	if want := "log lines dropped, more came than the log can take count=3"; log[len(log)-1] != want {
		t.Errorf("got %q, want %q", log[len(log)-1], want)
	}
	q.drain(log.write)
	if len(log) != maxQueuedLines+1 {
		t.Error("lines were written twice")
	}
}
