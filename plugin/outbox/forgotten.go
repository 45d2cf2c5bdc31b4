package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"

	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/replay"
)

// forgottenState is the name under which the journal keeps the timestamps of messages whose ids are forgotten, once the
// messages themselves are dropped.
const forgottenState = "forgotten"

// forgotten takes from the replay memory which timestamps it refuses, on the broker's thread, and saves them in the
// journal, on the journal's goroutine, before messages are dropped there.
type forgotten struct {
	seen    *replay.Set
	journal *journal.Journal // set before the first note
	at      int64            // of the last note, in seconds since 1970
	noted   atomic.Pointer[forgottenSpans]
}

// forgottenSpans are of one moment.
type forgottenSpans struct {
	spans    []replay.Span
	earliest int64 // what is stamped before is forgotten
}

// note publishes them, at most once a second. Broker's thread.
func (f *forgotten) note(now int64) {
	if now != f.at {
		f.at = now
		f.noted.Store(&forgottenSpans{f.seen.Spans(), f.seen.Earliest()})
	}
}

// save is journal.Options.BeforeDrop: of messages that are dropped, what is left is that their timestamps are refused.
func (f *forgotten) save(newest int64) error {
	noted := f.noted.Load()
	if noted == nil || noted.earliest <= newest {
		return journal.ErrNotYet
	}
	text, err := json.Marshal(noted.spans)
	if err != nil {
		return err
	}
	return f.journal.SaveState(forgottenState, text)
}

// restoreForgotten has the replay memory refuse what it refused before, as far as the journal cannot tell.
func restoreForgotten(dir string, seen *replay.Set, now, tolerance int64, log *slog.Logger) error {
	text, err := journal.LoadState(dir, forgottenState)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var spans []replay.Span
	if err == nil {
		if err = json.Unmarshal(text, &spans); err != nil {
			err = fmt.Errorf("%w: %w", journal.ErrDamaged, err)
		}
	}
	if errors.Is(err, journal.ErrDamaged) {
		// What the clock refuses now it must refuse for good.
		spans = []replay.Span{{First: 0, Last: now - tolerance - 1}}
		log.Error("the journal's record of dropped messages is damaged; messages that are older than the start by more than the "+
			"tolerance are refused even if the clock is set back", "error", err)
		err = nil
	}
	seen.Restore(spans)
	return err
}
