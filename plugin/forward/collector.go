package forward

import (
	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the metrics of what is delivered to the backend.
func (f *Forwarder) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		s := f.Stats()
		to.Gauge("lanes", "Devices that have messages waiting for the backend.", float64(s.Lanes))
		to.Gauge("requests_in_flight", "Requests to the backend without a response yet.", float64(s.InFlight))
		to.Counter("request_retries_total", "Requests to the backend that failed and are repeated.", s.Retries)
		to.Flag("backend_down", "Whether the backend as a whole seems down.", s.Down)
		to.Flag("backend_refusing", "Whether the backend refuses every message; no message is given up meanwhile.", s.Refusing)
		for _, r := range f.Responses() {
			to.Counter("backend_responses_total", "Requests to the backend by the status of the response.", r.N, "status", r.Status)
		}
		to.Gauge("blocked_devices", "Devices for which delivery waits because there is no room for a dead letter.", float64(s.BlockedDevices))
		to.Flag("deliveries_suspended", "Whether delivery to the backend is suspended until an operator resumes it.", s.Suspended)
		to.Gauge("suspended_devices", "Devices for which delivery is suspended until an operator resumes it.", float64(s.SuspendedDevices))
		to.Counter("store_errors_total", "Number of times a message could not be read, or a dead letter could not be stored.", s.StoreErrors)
		to.Counter("answers_dropped_total", "Bodies of the backend's responses that were dropped: too long, or compressed.", s.AnswersDropped)
		latency := metrics.Histogram{Counts: s.Latency.Counts[:], Sum: s.Latency.Sum}
		for _, bound := range latencyBounds {
			latency.Bounds = append(latency.Bounds, bound.Seconds())
		}
		to.Histogram("delivery_seconds", "Time from the acceptance of a message to its delivery.", latency)
	})
}
