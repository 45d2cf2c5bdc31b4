package metrics

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// TestWrite: what is written is the text format, by Prometheus' own parser and linter, and says what it was given.
func TestWrite(t *testing.T) {
	s := NewSet(slog.New(slog.DiscardHandler))
	s.Add(Collector(func(to Sender) {
		to.Gauge("build_info", "The version.", 1, "version", `0.1 "x"`)
		for verdict, n := range map[string]uint64{"accepted": 7, "stale": 1} {
			to.Counter("publishes_total", "Publishes.", n, "verdict", verdict)
		}
		to.Counter("messages_delivered_total", "Messages.", 4)
		to.Flag("backend_down", "Whether it is down.", true)
		to.Flag("backend_refusing", "Whether it refuses.", false)
	}), Collector(func(to Sender) {
		to.Histogram("delivery_seconds", "Time.", Histogram{Bounds: []float64{0.001, 1}, Counts: []uint64{3, 1, 1}, Sum: 3.5})
		to.Seconds("journal_fsync_seconds_total", "Time.", 1.5)
		to.Histogram("callback_seconds", "Time.", new(Timer).Histogram(), "callback", "message")
	}))
	var out bytes.Buffer
	kind, err := s.Write(&out)
	if err != nil || !strings.HasPrefix(kind, "text/plain; version=0.0.4") {
		t.Fatalf("%q %v", kind, err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	if _, err := parser.TextToMetricFamilies(bytes.NewReader(out.Bytes())); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	problems, err := promlint.New(bytes.NewReader(out.Bytes())).Lint()
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, want := range []string{
		`bouncer_build_info{version="0.1 \"x\""} 1`,
		`bouncer_publishes_total{verdict="accepted"} 7`,
		`bouncer_publishes_total{verdict="stale"} 1`,
		"bouncer_messages_delivered_total 4",
		"bouncer_backend_down 1",
		"bouncer_backend_refusing 0",
		`bouncer_delivery_seconds_bucket{le="0.001"} 3`,
		`bouncer_delivery_seconds_bucket{le="1"} 4`,
		`bouncer_delivery_seconds_bucket{le="+Inf"} 5`,
		"bouncer_delivery_seconds_sum 3.5",
		"bouncer_journal_fsync_seconds_total 1.5",
		`bouncer_callback_seconds_count{callback="message"} 0`,
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("%s is missing in\n%s", want, out.String())
		}
	}
}

// TestFaultyCollector: a collector that panics leaves the others' figures, and the process, as they are.
func TestFaultyCollector(t *testing.T) {
	var logged bytes.Buffer
	s := NewSet(slog.New(slog.NewTextHandler(&logged, nil)))
	s.Add(Collector(func(Sender) { panic("oops") }), Collector(func(to Sender) { to.Gauge("lanes", "Lanes.", 2) }))
	var out bytes.Buffer
	if _, err := s.Write(&out); err != nil || !strings.Contains(out.String(), "bouncer_lanes 2\n") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if !strings.Contains(logged.String(), "panic=oops") {
		t.Error(logged.String())
	}
	if _, err := s.Write(io.Discard); err != nil {
		t.Error(err)
	}
}

func TestTimer(t *testing.T) {
	var timer Timer
	for range 10 * sampled {
		timer.End(timer.Begin())
	}
	n := uint64(0)
	h := timer.Histogram()
	for _, count := range h.Counts {
		n += count
	}
	if n != 10 || h.Sum <= 0 || len(h.Bounds)+1 != len(h.Counts) {
		t.Errorf("%+v", h)
	}
}

func BenchmarkTimer(b *testing.B) {
	var timer Timer
	for b.Loop() {
		timer.End(timer.Begin())
	}
}
