package outbox

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
)

const (
	maxRequeued     = 256                    // letters at a time
	requeuingAtOnce = 500 * time.Microsecond // but for the first letter; with sync = "always" each takes an fsync
)

// requeued are letters that an operator has requeued, on their way through the broker's thread into the journal.
type requeued struct {
	letters []deadletter.Letter
	next    int           // letters[:next] are in the journal; the broker's thread's
	done    chan struct{} // closed when all are
}

// A requeuer brings letters that an operator has requeued back into the journal, to which only the broker's thread appends
// to: the housekeeping reads them, and removes them when they are in the journal.
type requeuer struct {
	queue      *queue
	letters    *deadletter.Store
	registry   Registry
	wake       func()
	log        *slog.Logger
	complaints rate.Sometimes

	offered atomic.Pointer[requeued] // to the broker's thread; nil: none

	// The rest is the housekeeping's, and stop's when that has ended.
	handed *requeued           // what is or was offered, and not known to be in the journal; nil: none
	taken  []deadletter.Letter // in the journal, and not removed yet
}

func newRequeuer(q *queue, letters *deadletter.Store, o *Options) *requeuer {
	return &requeuer{
		queue: q, letters: letters, registry: o.Registry, wake: o.Wake, log: o.Log,
		complaints: rate.Sometimes{Interval: complaintInterval},
	}
}

// round takes back all that an operator has requeued, as far as there is room. The housekeeping calls it.
func (r *requeuer) round(ctx context.Context) {
	for ctx.Err() == nil && r.requeue(ctx) {
	}
}

// requeue takes back some letters, and reports whether there may be more.
func (r *requeuer) requeue(ctx context.Context) bool {
	if !r.remove(ctx) {
		return false // they would be taken again
	}
	if r.handed == nil {
		letters, err := r.letters.Requeued(ctx, maxRequeued)
		if err != nil && ctx.Err() == nil {
			r.complaints.Do(func() { r.log.Warn("requeued dead letters cannot be read", "error", err) })
		}
		if err != nil || len(letters) == 0 {
			return false
		}
		r.handed = &requeued{letters: letters, done: make(chan struct{})}
		r.offered.Store(r.handed)
		r.wake()
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(housekeepingInterval): // the journal is full, or the broker never ticks
		return false
	case <-r.handed.done:
	}
	r.taken, r.handed = r.handed.letters, nil
	r.log.Info("dead letters requeued", "count", len(r.taken))
	return r.remove(ctx)
}

// remove removes the letters that are in the journal. Until it has succeeded no others are taken.
func (r *requeuer) remove(ctx context.Context) bool {
	err := r.letters.Remove(context.WithoutCancel(ctx), r.taken...)
	if err != nil {
		r.complaints.Do(func() {
			r.log.Warn("requeued dead letters cannot be removed, so no others are requeued; after a restart they are delivered again", "error", err)
		})
		return false
	}
	r.taken = nil
	return true
}

// stop removes what is in the journal, when the housekeeping has ended: the broker's thread, which calls it, knows what
// that is.
func (r *requeuer) stop() {
	if offered := r.offered.Swap(nil); offered != nil {
		r.taken = append(r.taken, offered.letters[:offered.next]...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r.remove(ctx)
}

// take puts some of the letters that are offered into the journal. Broker's thread.
func (r *requeuer) take() {
	offered := r.offered.Load()
	if offered == nil {
		return
	}
	began := time.Now()
	for first := offered.next; offered.next < len(offered.letters); offered.next++ {
		if offered.next > first && time.Since(began) > requeuingAtOnce {
			return
		}
		if !r.put(&offered.letters[offered.next]) {
			return
		}
	}
	r.offered.Store(nil)
	close(offered.done)
}

// put puts one letter into the journal. It reports false where it is to be tried again later.
func (r *requeuer) put(l *deadletter.Letter) bool {
	id, err := uuid.Parse(l.MessageID)
	if err != nil {
		r.log.Error("a dead letter cannot be requeued: it has no message id", "letter", l.ID)
		return true
	}
	device := l.Device
	if d := r.registry.Lookup([]byte(device)); d != nil {
		device = d.ID
	}
	// A share does not hold back what makes room among the dead letters, nor the other devices' letters behind it.
	if err := r.queue.Admit(device, len(l.Payload)); err != nil && !errors.Is(err, forward.ErrShare) {
		return false // there will be room
	}
	a := journal.Accepted{
		Device: device, MessageID: id, Timestamp: l.Timestamp, Topic: []byte(l.Topic), Payload: l.Payload, Traceparent: l.Traceparent,
	}
	a.Requeue(l.AcceptedAt, time.Now())
	err = r.queue.Append(&a)
	if errors.Is(err, journal.ErrTooLarge) {
		r.complaints.Do(func() {
			r.log.Error("a dead letter cannot be requeued, nor those behind it: it is larger than the journal takes; "+
				"raise [journal] max_bytes, or drop it with bouncerctl dead drop", "letter", l.ID, "device", l.Device, "bytes", len(l.Payload))
		})
	}
	return err == nil
}
