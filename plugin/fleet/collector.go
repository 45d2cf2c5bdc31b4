package fleet

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the metrics of the connection and the stream.
func (f *Fleet) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		to.Flag("fleet_connected", "Whether there is a connection to NATS.", f.session.Load() != nil)
		to.Flag("fleet_ready", "Whether messages go to NATS: it is connected, and the stream is as it must be.", f.trouble.Load() == nil)
		to.Counter("fleet_acknowledged_total", "Messages that the stream has stored.", f.acks.Load())
		to.Counter("fleet_duplicates_total", "Messages that the stream had already when they were sent again.", f.duplicates.Load())
		to.Counter("fleet_errors_total", "Attempts to have a message stored that failed, or whose outcome is not known.", f.failed.Load())
		to.Counter("fleet_lookups_total", "Old messages that were looked up in the stream before they were sent.", f.lookups.Load())
		to.Counter("fleet_found_total", "Old messages that the stream had when they were looked up.", f.found.Load())
		to.Counter("fleet_reconnects_total", "Times that the connection to NATS was made again.", f.reconnects.Load())
		to.Gauge("fleet_lag_seconds", "Time from acceptance to storage of the message that was stored last.", time.Duration(f.lag.Load()).Seconds())
		to.Gauge("fleet_stream_bytes", "Size of the stream when it was last looked at.", float64(f.stored.Load()))
		to.Gauge("fleet_stream_max_bytes", "Largest size of the stream; 0: any.", float64(f.room.Load()))
	})
}
