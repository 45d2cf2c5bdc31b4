package metrics

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func everything() Figures {
	return Figures{
		Version:  `0.1 "x"`,
		Verdicts: []Count{{"accepted", 7}, {"stale", 1}},
		Delivery: Delivery{Accepted: 7, Delivered: 4, Dead: 1, Pending: 2, Lanes: 2, Down: true,
			Latency: &Histogram{Bounds: []float64{0.001, 1}, Counts: []uint64{3, 1, 1}, Sum: 3.5}},
		Journal:     Journal{Bytes: 10, SyncTime: 1500 * time.Millisecond},
		Registry:    Registry{Devices: 3, Age: time.Second},
		Callbacks:   []Callback{{"write", new(Timer).Histogram()}, {"message", new(Timer).Histogram()}},
		Commands:    &Commands{ByState: []Count{{"queued", 1}, {"sent", 2}}, Answers: 5},
		HTTPAnswers: [5]uint64{0, 1, 2, 3, 4},
	}
}

// TestWrite: what is written is the text format, by Prometheus' own parser and linter, and says what it was given.
func TestWrite(t *testing.T) {
	var out bytes.Buffer
	kind, err := Write(&out, everything)
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
		`bouncer_delivery_seconds_bucket{le="0.001"} 3`,
		`bouncer_delivery_seconds_bucket{le="1"} 4`,
		`bouncer_delivery_seconds_bucket{le="+Inf"} 5`,
		"bouncer_delivery_seconds_sum 3.5",
		"bouncer_journal_fsync_seconds_total 1.5",
		`bouncer_callback_seconds_count{callback="message"} 0`,
		`bouncer_commands{state="sent"} 2`,
		`bouncer_command_answers_total{outcome="counted"} 5`,
		`bouncer_http_answers_total{status="5xx"} 4`,
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("%s is missing in\n%s", want, out.String())
		}
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
