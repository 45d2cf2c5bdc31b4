package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
)

const (
	// unblockedAtOnce is how many devices that wait for room are tried again in one round.
	unblockedAtOnce = 256
	reserveInterval = 10 * time.Second
)

// openLetters opens the dead letters, which leave the journal the room that it may still take.
func openLetters(o *Options, j *journal.Journal) (*deadletter.Store, error) {
	limits := o.Letters
	limits.Leave = func() int64 {
		s := j.Stats()
		return s.MaxBytes - s.Bytes
	}
	return deadletter.Open(filepath.Join(o.StateDir, deadletter.FileName), limits)
}

// noRoom marks the errors of a Store of letters for which the forwarder stops a device's lane.
func noRoom(err error) error {
	if errors.Is(err, deadletter.ErrDeviceFull) || errors.Is(err, deadletter.ErrFull) {
		return fmt.Errorf("%w: %w", forward.ErrNoRoom, err)
	}
	return err
}

// A letterRoom watches the room of the dead letters, and lets devices continue that waited for it. The housekeeping calls
// round.
type letterRoom struct {
	letters   *deadletter.Store
	forwarder *forward.Forwarder
	log       *slog.Logger
	maxBytes  int64 // as configured
	failures  rate.Sometimes

	usage    atomic.Pointer[deadletter.Usage] // as last read; nil: not yet
	full     bool                             // the log was told so
	dropped  uint64                           // that the log was told of
	reserved time.Time
}

func newLetterRoom(letters *deadletter.Store, f *forward.Forwarder, o *Options) *letterRoom {
	return &letterRoom{
		letters: letters, forwarder: f, log: o.Log, maxBytes: o.Letters.MaxBytes,
		failures: rate.Sometimes{Interval: complaintInterval},
	}
}

func (r *letterRoom) round(ctx context.Context, now time.Time) {
	if now.Sub(r.reserved) >= reserveInterval {
		r.reserved = now
		if err := r.letters.Reserve(ctx); err != nil && ctx.Err() == nil {
			r.failures.Do(func() {
				r.log.Warn("no room can be reserved on the disk for dropping dead letters", "error", err)
			})
		}
	}
	u, err := r.letters.Usage(ctx)
	if err != nil {
		return // the health check says so, and the forwarder where it adds a letter
	}
	r.usage.Store(&u)
	if u.Dropped > r.dropped && u.MaxBytes < r.maxBytes {
		r.letters.Reclaim(ctx)
	}
	r.report(&u)
	blocked := r.forwarder.Blocked(unblockedAtOnce)
	if len(blocked) == 0 {
		return
	}
	free, err := r.letters.HasRoom(ctx, blocked)
	if err != nil {
		return
	}
	for _, device := range free {
		r.forwarder.Unblock(device)
	}
}

// report tells the log when the letters have no more room, when they have again, and how many were dropped for others.
func (r *letterRoom) report(u *deadletter.Usage) {
	if full := u.Full(); full != r.full {
		if r.full = full; full {
			r.log.Error("the dead letters have reached their maximum size; devices with another one wait, other devices are not affected: "+
				"requeue or drop letters with bouncerctl dead, raise [dead_letters] max_bytes, or make room on the disk",
				"bytes", u.Bytes, "max_bytes", u.MaxBytes, "letters", u.Letters)
		} else {
			r.log.Info("there is room for dead letters again", "bytes", u.Bytes, "max_bytes", u.MaxBytes)
		}
	}
	if n := u.Dropped - r.dropped; n > 0 {
		r.dropped = u.Dropped
		r.log.Warn(`the oldest dead letters were dropped for others ([dead_letters] at_limit = "drop-oldest")`, "count", n)
	}
}

// last returns the usage as last read. Any goroutine.
func (r *letterRoom) last() (u deadletter.Usage) {
	if read := r.usage.Load(); read != nil {
		u = *read
	}
	return u
}

// wrong says what is wrong, nil if nothing is. That only some devices wait for room is not.
func (r *letterRoom) wrong() error {
	if u := r.last(); u.Full() {
		return fmt.Errorf("the dead letters take %d of %d bytes; requeue or drop some with bouncerctl dead", u.Bytes, u.MaxBytes)
	}
	return nil
}
