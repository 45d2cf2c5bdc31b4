package httpd

import (
	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the listener's metrics.
func (s *Server) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		for class := 2; class <= 5; class++ { // 1xx is not counted
			to.Counter("http_answers_total", "Responses of the HTTP listener by class of status.", s.answers[class].Load(), "status", string(rune('0'+class))+"xx")
		}
		const help = "Requests to the HTTP listener without the valid token, by the status of the response."
		to.Counter("http_unauthorized_total", help, s.guard.refused.Load(), "status", "401")
		to.Counter("http_unauthorized_total", help, s.guard.limited.Load(), "status", "429")
		to.Counter("http_connections_closed_total", "Connections to the HTTP listener closed because there were too many.", s.conns.evicted.Load())
	})
}
