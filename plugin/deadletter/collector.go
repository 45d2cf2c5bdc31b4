package deadletter

import (
	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the metrics of dead letters from usage, which does not wait for the database.
func Collector(usage func() Usage) prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		u := usage()
		to.Gauge("dead_letters", "Number of dead letters kept.", float64(u.Letters))
		to.Gauge("dead_letters_bytes", "Size of the dead letters in bytes.", float64(u.Bytes))
		to.Gauge("dead_letters_max_bytes", "Largest allowed size of the dead letters in bytes.", float64(u.MaxBytes))
		to.Counter("dead_letters_dropped_total", "Dead letters removed to make room for others.", u.Dropped)
	})
}
