package gate

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/sampler"
)

// maxLine leaves room for the broker's time stamp in the 1000 bytes at which it cuts a line.
const maxLine = 900

// brokerLog collects what is written to the broker's log.
type brokerLog []string

func (l *brokerLog) write(_ slog.Level, line string) { *l = append(*l, line) }

func TestRefusalsAreSampledAndCounted(t *testing.T) {
	lines, log := sampler.New(), brokerLog{}
	l := refusalLog{sampler: lines}
	start := time.Unix(now, 0)
	for i := range sampler.Burst + 250 {
		l.refused(start, publish(fmt.Sprintf("sensor_%04d", i), nil), nil, Stale, nil, log.write)
	}
	if len(log) != sampler.Burst {
		t.Fatalf("%d lines, want %d", len(log), sampler.Burst)
	}
	if want := "refused device=sensor_0000 topic=device/sensor_0000/data reason=stale client=c"; log[0] != want {
		t.Errorf("got %q, want %q", log[0], want)
	}
	l.reportLeftOut(start.Add(time.Second), log.write)
	if want := `clients caused more lines than the log takes; lines left out count=250 of="refused: 250"`; log[len(log)-1] != want {
		t.Errorf("got %q, want %q", log[len(log)-1], want)
	}
	before := len(log)
	l.reportLeftOut(start.Add(3*time.Second), log.write)
	if len(log) != before {
		t.Error("the same refusals were counted twice")
	}
}

// A client that keeps failing leaves room in the log for the others, whether it is a device or not.
func TestRefusalsOfOneDeviceAreSampled(t *testing.T) {
	log := brokerLog{}
	l := refusalLog{sampler: sampler.New()}
	start := time.Unix(now, 0)
	for range sampler.Burst {
		l.refused(start, publish("sensor_001", nil), nil, BadSignature, nil, log.write)
	}
	if len(log) != sampler.ClientBurst {
		t.Fatalf("%d lines of one device, want %d", len(log), sampler.ClientBurst)
	}
	l.refused(start, publish("sensor_002", nil), nil, Stale, nil, log.write)
	if last := log[len(log)-1]; !strings.HasPrefix(last, "refused device=sensor_002 ") {
		t.Errorf("the other device's line is missing; last is %q", last)
	}
}

// What a publisher chose must neither break a line nor look like another value.
func TestRefusalLineQuotesThePublishersWords(t *testing.T) {
	l, log := refusalLog{sampler: sampler.New()}, brokerLog{}
	p := &Publish{Identity: []byte("a b\nbouncer: accepted"), ClientID: []byte("c reason=accepted"), Topic: []byte("device/\x1b[31m/data")}
	l.refused(time.Unix(now, 0), p, nil, Malformed, nil, log.write)
	want := `refused device="a b\nbouncer: accepted" topic="device/\x1b[31m/data" reason=malformed client="c reason=accepted"`
	if log[0] != want {
		t.Errorf("got  %s\nwant %s", log[0], want)
	}
	p = publish(strings.Repeat("x", 70000), nil)
	p.ClientID = []byte(strings.Repeat("\xff", 70000))
	l.refused(time.Unix(now, 0), p, nil, Malformed, nil, log.write)
	if len(log[1]) > maxLine {
		t.Errorf("a line of %d bytes", len(log[1]))
	}
}
