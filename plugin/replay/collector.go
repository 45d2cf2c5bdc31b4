package replay

import (
	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the set's metrics.
func (s *Set) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		to.Gauge("replay_ids", "Message ids remembered.", float64(s.Len()))
		to.Gauge("replay_ids_max", "Message ids that can be remembered.", float64(s.Capacity()))
	})
}
