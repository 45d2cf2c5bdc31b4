// Package metrics writes figures in Prometheus' text format. It holds none itself: every package has a Collector that reads
// them where they are counted, when somebody asks, so that counting costs an increment and no more. No figure has a
// device's id.
package metrics

import (
	"io"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"mosquitto-bouncer/plugin/crash"
)

// A Set is all that is shown. Add may not be called while Write runs; Write is safe for concurrent use.
type Set struct {
	log        *slog.Logger
	collectors []prometheus.Collector
}

// NewSet returns an empty Set. log takes the panics of collectors.
func NewSet(log *slog.Logger) *Set { return &Set{log: log} }

// Add adds what collectors read.
func (s *Set) Add(collectors ...prometheus.Collector) {
	s.collectors = append(s.collectors, collectors...)
}

// Write writes the figures as they are now, and returns the content type.
func (s *Set) Write(w io.Writer) (contentType string, err error) {
	registry := prometheus.NewRegistry()
	if err := registry.Register(Collector(s.collect)); err != nil {
		return "", err
	}
	families, err := registry.Gather()
	if err != nil {
		return "", err
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	encoder := expfmt.NewEncoder(w, format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return "", err
		}
	}
	return string(format), nil
}

// collect runs in a goroutine of Prometheus' library: a panic there would end the process.
func (s *Set) collect(to Sender) {
	for _, c := range s.collectors {
		func() {
			defer crash.Log(s.log, "metrics")
			to.Collect(c)
		}()
	}
}

// A Collector is a prometheus.Collector that sends figures of the moment. Any goroutine may call it.
type Collector func(to Sender)

// Describe says nothing, which makes the registry check what Collect sends instead.
func (Collector) Describe(chan<- *prometheus.Desc) {}

// Collect is prometheus.Collector's.
func (c Collector) Collect(to chan<- prometheus.Metric) { c(Sender{to}) }

// A Sender makes metrics of figures. The names begin with "bouncer_", which it adds. A label is a name and a value; there is
// one at most.
type Sender struct{ to chan<- prometheus.Metric }

// Collect sends what another collector reads.
func (s Sender) Collect(c prometheus.Collector) { c.Collect(s.to) }

// Counter sends what only grows.
func (s Sender) Counter(name, help string, n uint64, label ...string) {
	s.send(name, help, prometheus.CounterValue, float64(n), label)
}

// Seconds is Counter for a sum of times, in seconds.
func (s Sender) Seconds(name, help string, n float64) {
	s.send(name, help, prometheus.CounterValue, n, nil)
}

// Gauge sends what goes up and down.
func (s Sender) Gauge(name, help string, n float64, label ...string) {
	s.send(name, help, prometheus.GaugeValue, n, label)
}

// Flag is Gauge for yes and no: 1 and 0.
func (s Sender) Flag(name, help string, yes bool) {
	n := 0.0
	if yes {
		n = 1
	}
	s.Gauge(name, help, n)
}

func (s Sender) send(name, help string, kind prometheus.ValueType, n float64, label []string) {
	desc, values := describe(name, help, label)
	s.to <- prometheus.MustNewConstMetric(desc, kind, n, values...)
}

// A Histogram counts by size. Bounds are the upper ones of the buckets, in seconds; Counts has one more, of what is above
// them all, and each is only of its own bucket.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64 // seconds
}

// Histogram sends a distribution of times.
func (s Sender) Histogram(name, help string, h Histogram, label ...string) {
	desc, values := describe(name, help, label)
	buckets := make(map[float64]uint64, len(h.Bounds))
	total := uint64(0)
	for i, n := range h.Counts {
		total += n
		if i < len(h.Bounds) {
			buckets[h.Bounds[i]] = total
		}
	}
	s.to <- prometheus.MustNewConstHistogram(desc, total, h.Sum, buckets, values...)
}

// describe makes the description of a metric with at most one label, of which name and value are given.
func describe(name, help string, label []string) (*prometheus.Desc, []string) {
	var names, values []string
	if len(label) > 0 {
		names, values = label[:1], label[1:]
	}
	return prometheus.NewDesc("bouncer_"+name, help, names, nil), values
}
