package outbox

import (
	"log/slog"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/standing"
)

// A standingKeeper keeps over restarts what is known of the backend's refusals. The housekeeping calls it, and Close when
// that has ended.
type standingKeeper struct {
	dir, url   string
	log        *slog.Logger
	complaints rate.Sometimes
	version    uint64 // that is on disk
}

// newStandingKeeper also reads what the process before knew. Where it cannot, the forwarder finds it out again.
func newStandingKeeper(o *Options) (*standingKeeper, forward.Standing) {
	k := &standingKeeper{dir: o.StateDir, url: o.BackendURL, log: o.Log, complaints: rate.Sometimes{Interval: complaintInterval}}
	kept, err := standing.Load(k.dir, k.url)
	if err != nil {
		o.Log.Warn("the saved state of the backend cannot be read; it is determined again", "error", err)
		return k, forward.Standing{}
	}
	// A status that is fatal now is not the backend's state any more.
	kept.Refusing = kept.Refusing && !slices.Contains(o.FatalStatuses, kept.Status)
	if kept.Refusing {
		o.Log.Warn("the backend was refusing every message before the start; one message asks whether it still does",
			"status", kept.Status, "since", kept.Since.UTC().Format(time.RFC3339))
	}
	return k, forward.Standing(kept)
}

// save writes down what has changed.
func (k *standingKeeper) save(f *forward.Forwarder) {
	s, version := f.Standing()
	if version == k.version {
		return
	}
	if err := standing.Save(k.dir, k.url, standing.State(s)); err != nil {
		k.complaints.Do(func() {
			k.log.Warn("the state of the backend cannot be saved; it is determined again after a restart", "error", err)
		})
		return
	}
	k.version = version
}
