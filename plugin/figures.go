package plugin

import (
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/metrics"
)

// figures are what the broker's thread counts for the metrics. It alone writes them; the listener's goroutines read.
type figures struct {
	verdicts [gate.ReasonCount]atomic.Uint64
	lastTick atomic.Int64 // Unix nanoseconds; 0: none yet
	ticks    atomic.Uint64

	foreignClients atomic.Uint64 // connections under the client id of another identity

	access, message metrics.Timer
}

func (f *figures) tick(now time.Time) {
	f.ticks.Add(1)
	f.lastTick.Store(now.UnixNano())
}

// collectors returns everything that /metrics shows.
func (g *Gateway) collectors() *metrics.Set {
	set := metrics.NewSet(g.log)
	set.Add(metrics.Collector(g.collect), g.registry.Collector(), g.seen.Collector(), g.down.Collector(), g.responses.Collector(), g.commands.Collector(),
		metrics.Collector(func(to metrics.Sender) {
			if server := g.server.Load(); server != nil { // it answers before it is set
				to.Collect(server.Collector())
			}
		}))
	set.Add(g.outbox.Collectors()...)
	return set
}

// collect sends what the gateway counts itself. Any goroutine.
func (g *Gateway) collect(to metrics.Sender) {
	f := &g.figures
	to.Gauge("build_info", "The version of the plugin.", 1, "version", Version)
	for r := range gate.ReasonCount {
		to.Counter("publishes_total", "Publishes to gated topics by verdict, and other refused requests of devices.", f.verdicts[r].Load(), "verdict", r.String())
	}
	to.Counter("rejection_notices_total", "Notices that told a device why its publish was refused.", g.notices.sent.Load())
	to.Counter("foreign_client_ids_total", "Connections under the client id of another identity.", f.foreignClients.Load())
	to.Counter("ticks_total", "Number of times the broker's event loop has run.", f.ticks.Load())
	to.Flag("config_reload_failed", "Whether bouncer.toml could not be reloaded at the last SIGHUP.", g.ReloadError() != "")
	const help = "Time that a callback of the broker took, of a sample."
	to.Histogram("callback_seconds", help, f.access.Histogram(), "callback", "access")
	to.Histogram("callback_seconds", help, f.message.Histogram(), "callback", "message")
}
