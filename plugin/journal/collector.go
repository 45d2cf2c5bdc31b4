package journal

import (
	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// Collector reads the journal's metrics, and what happened to the messages in it, all of one moment.
func (j *Journal) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		s := j.Stats()
		to.Counter("messages_accepted_total", "Messages accepted for delivery; equals delivered, dead and pending together.", s.Accepted)
		to.Counter("messages_delivered_total", "Messages that the backend has taken.", s.Delivered)
		to.Counter("messages_dead_total", "Messages given up.", s.Dead)
		to.Gauge("messages_pending", "Messages that wait for the backend.", float64(s.Pending))
		to.Gauge("journal_bytes", "Size of the journal in bytes.", float64(s.Bytes))
		to.Gauge("journal_max_bytes", "Largest allowed size of the journal in bytes.", float64(s.MaxBytes))
		to.Gauge("journal_segments", "Number of segment files of the journal.", float64(s.Segments))
		to.Counter("journal_fsyncs_total", "Number of times the journal was synced to disk.", s.Syncs)
		to.Seconds("journal_fsync_seconds_total", "Time spent on syncing the journal to disk.", s.SyncTime.Seconds())
		to.Gauge("journal_fsync_seconds_max", "Longest time that one sync of the journal took.", s.SyncMax.Seconds())
		to.Counter("journal_fsync_errors_total", "Number of times syncing the journal failed.", s.SyncErrors)
		to.Counter("journal_damaged_messages_total", "Messages that the start found to be lost to damage.", s.Damaged)
		to.Counter("journal_refused_total", "Messages that the journal did not accept.", s.Refused)
	})
}
