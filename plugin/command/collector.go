package command

import (
	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the store's metrics.
func (s *Store) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		c := s.Counts()
		for _, state := range States() {
			to.Gauge("commands", "Number of commands kept, by state.", float64(max(0, c.ByState[state])), "state", string(state))
		}
		to.Gauge("commands_unfinished", "Commands that are queued or sent.", float64(c.Unfinished))
		to.Counter("commands_created_total", "Commands created.", c.Created)
		to.Counter("commands_repeated_total", "Requests whose idempotency key named an existing command.", c.Repeated)
		const help = "Devices' answers to commands, by result."
		to.Counter("command_answers_total", help, c.Answers, "outcome", "counted")
		to.Counter("command_answers_total", help, c.Strays, "outcome", "stray")
		to.Counter("command_answers_total", help, c.Malformed, "outcome", "malformed")
	})
}
