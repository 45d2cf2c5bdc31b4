package downlink

import (
	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the metrics of all that leaves by way of d.
func (d *Dispatcher) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		waiting := 0
		for _, q := range d.counted {
			waiting += q.Len()
		}
		to.Gauge("downlink_waiting", "Responses and commands that wait for the broker's event loop.", float64(waiting))
		to.Counter("downlink_published_total", "Responses and commands given to the broker.", d.published.Load())
		to.Counter("downlink_refused_total", "Responses and commands that the broker did not accept.", d.refused.Load())
	})
}

// Collector reads only the metrics of responses.
func (rs *Responses) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		lost, foreign := rs.contexts.counts()
		to.Counter("downlink_dropped_total", "Responses dropped because they are too long or there was no room.", rs.dropped.Load())
		to.Counter("responses_expired_total", "Responses dropped because the message is older than [response] max_age.", rs.expired.Load())
		to.Counter("response_topics_ignored_total", "Response topics outside the device's own.", foreign)
		to.Counter("response_contexts_lost_total", "Correlation data or response topics for which there was no room.", lost)
	})
}

// Collector reads the metrics of commands and of devices' answers.
func (cs *Commands) Collector() prometheus.Collector { return cs.store.Collector() }
