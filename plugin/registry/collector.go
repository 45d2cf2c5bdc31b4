package registry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the registry's metrics.
func (r *Registry) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		var age time.Duration
		if current, _ := r.Health(); !current.IsZero() {
			age = max(0, time.Since(current))
		}
		to.Gauge("registry_devices", "Registered devices, disabled ones included.", float64(r.Len()))
		to.Gauge("registry_age_seconds", "Time since the registry was last found to be up to date.", age.Seconds())
	})
}
