package gate

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/metrics"
)

// figures are what the broker's thread counts for the metrics. Only this thread writes them; the listener's goroutines read.
type figures struct {
	verdicts [ReasonCount]atomic.Uint64
	lastTick atomic.Int64 // Unix nanoseconds; 0: none yet
	ticks    atomic.Uint64

	foreignClients atomic.Uint64 // connections under the client id of another identity
	notices        atomic.Uint64 // sent to devices

	access, message metrics.Timer
}

func (f *figures) tick(now time.Time) {
	f.ticks.Add(1)
	f.lastTick.Store(now.UnixNano())
}

// LastTick returns when Tick was called last; before the first, when the gate was made. Any goroutine.
func (g *Gate) LastTick() time.Time {
	if last := g.figures.lastTick.Load(); last != 0 {
		return time.Unix(0, last)
	}
	return g.clock.started
}

// Collector reads what the gate counts.
func (g *Gate) Collector() prometheus.Collector {
	return metrics.Collector(func(to metrics.Sender) {
		f := &g.figures
		for r := range ReasonCount {
			to.Counter("publishes_total", "Publishes to gated topics by verdict, and other refused requests of devices.", f.verdicts[r].Load(), "verdict", r.String())
		}
		to.Counter("rejection_notices_total", "Notices that told a device why its publish was refused.", f.notices.Load())
		to.Counter("foreign_client_ids_total", "Connections under the client id of another identity.", f.foreignClients.Load())
		to.Counter("ticks_total", "Number of times the broker's event loop has run.", f.ticks.Load())
		const help = "Time that a callback of the broker took, of a sample."
		to.Histogram("callback_seconds", help, f.access.Histogram(), "callback", "access")
		to.Histogram("callback_seconds", help, f.message.Histogram(), "callback", "message")
	})
}
