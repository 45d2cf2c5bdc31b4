// Package outbox never loses an accepted message: each is kept until the backend has taken it or it is a dead letter. The
// outbox owns what is on disk for that: the journal, the dead letters, which of the backend's URLs are suspended, and what
// is known of the backend's refusals.
//
//	queue       journal and forwarder: a message is in both, or in neither
//	messages    what the forwarder's workers read and settle: the journal's records, the dead letters
//	recovery    at the start: replay memory and lanes, from the journal
//	forgotten   which timestamps are refused after their messages have left the journal
//	requeuer    dead letters on their way back into the journal
//	letterRoom  the room for dead letters; lets devices continue that waited for it
//	standing    what is known of the backend's refusals, over restarts
//	fullReport  which devices fill the journal, in the log
//
// The outbox imports package forward, which is a room as well. The other way is an interface, declared here, for what the
// outbox needs of a forwarder. It would have 14 methods, and most of the types of package forward in them (Message,
// DeadLetter, Counts, Standing, Stats, Queue, Backlog), for one implementation; a second one would have to imitate lanes.
// How messages are delivered varies behind the forwarder, so the seam for that is there.
package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/loop"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/suspension"
	"mosquitto-bouncer/plugin/writable"
)

const (
	housekeepingInterval = time.Second
	// complaintInterval is the least time between two log lines about the same failure of a disk.
	complaintInterval = 10 * time.Minute
	// largestOverhead is more than a message takes in the journal besides what was published.
	largestOverhead = 1 << 10
)

// A Registry knows the devices. Its methods are safe for concurrent use and wait for nothing.
type Registry interface {
	// Lookup returns a device, nil if there is none with this id.
	Lookup(id []byte) *registry.Device
	// Reserve returns the serial number of a device that is not registered any more.
	Reserve(id string) (uint32, error)
	// Len returns how many devices there are.
	Len() int
}

// Options say where and how an Outbox keeps messages. Every field is required but for Respond, FatalStatuses and IsAnswer.
type Options struct {
	StateDir string // the directory of everything that it keeps
	Journal  Journal
	// Letters bound the dead letters. Leave is set by the outbox: the letters leave the journal the room that it may still take.
	Letters deadletter.Limits
	// Forward says how messages are delivered. MaxBytes, Gone, Suspended, Standing and Registered are set by the outbox.
	Forward forward.Config
	// BackendURL is where Forward.Sink sends. What is known of the backend's refusals applies only to this URL.
	BackendURL string
	// FatalStatuses are those after which the backend is not asked again: a message that gets one is given up. May be empty.
	FatalStatuses []int
	// Respond takes the backend's responses: see forward.New. nil: they are dropped.
	Respond func(forward.Response)

	Registry Registry
	// Seen is the replay memory, empty at first. The outbox uses it in Open, Requeue and NoteForgotten.
	Seen      *replay.Set
	Tolerance time.Duration // of timestamps, in whole seconds
	// Entry returns what the replay memory keeps of a message that an earlier process accepted.
	Entry func(*journal.Accepted) replay.Entry
	// IsAnswer reports whether a topic is that of devices' answers to commands, which the backend does not get.
	IsAnswer func(topic []byte) bool
	// Wake has the broker's thread call Requeue soon. Any goroutine may call it; it returns at once.
	Wake func()
	Log  *slog.Logger
}

// Journal says what the journal may take.
type Journal struct {
	MaxBytes    int64
	DeviceShare float64       // of MaxBytes, that one device may have at most: 0 to 1
	MaxMessage  int           // bytes of the largest payload: any device may have one such message
	Sync        time.Duration // see journal.Options
}

// deviceBytes is what one device may have in the journal: its share, and at least one message of the largest size.
func (j *Journal) deviceBytes() int64 {
	return max(int64(j.DeviceShare*float64(j.MaxBytes)), int64(j.MaxMessage)+largestOverhead)
}

// A StateError is an error of Open about the state directory or what is in it.
type StateError struct{ Err error }

func (e *StateError) Error() string { return e.Err.Error() }

func (e *StateError) Unwrap() error { return e.Err }

// An Outbox keeps and delivers messages. Append, Requeue, Tick, NoteForgotten, Answers and Close belong to the broker's
// thread, and but for Close they wait for nothing. All other methods are safe for concurrent use.
type Outbox struct {
	queue
	log         *slog.Logger
	messages    *messages
	suspensions *suspension.Set
	standing    *standingKeeper
	forgotten   forgotten
	answers     []Answer // that the journal had at the start
	requeuer    *requeuer
	letterRoom  *letterRoom
	fullReport  fullReport

	housekeeping *loop.Loop
	context      context.Context // of the housekeeping; done when it is to end
	cancel       context.CancelFunc
}

// Open opens what is kept on disk, rebuilds what the process before knew, and starts the forwarder. The error is a
// *StateError, or the forwarder's about its configuration.
func Open(o Options) (_ *Outbox, err error) {
	b := &Outbox{queue: queue{log: o.Log}, log: o.Log, forgotten: forgotten{seen: o.Seen}, messages: newMessages()}
	defer func() {
		if err != nil {
			b.abort()
		}
	}()
	var suspended []string
	b.suspensions, suspended, err = suspension.Open(filepath.Join(o.StateDir, suspension.DirName), o.Log)
	if err != nil {
		return nil, &StateError{err}
	}
	var kept forward.Standing
	b.standing, kept = newStandingKeeper(&o)
	o.Forward.MaxBytes = forward.ShareOf(o.Journal.deviceBytes())
	o.Forward.Gone = b.suspensions.Gone
	o.Forward.Suspended = suspended
	o.Forward.Standing = kept
	o.Forward.Registered = o.Registry.Len
	if b.forwarder, err = forward.New(o.Forward, b.messages, o.Respond, o.Log); err != nil {
		return nil, err
	}
	if err = b.openJournal(&o); err != nil {
		return nil, &StateError{err}
	}
	recovered := b.journal.Stats()
	if b.messages.letters, err = openLetters(&o, b.journal); err != nil {
		return nil, &StateError{err}
	}
	b.requeuer = newRequeuer(&b.queue, b.messages.letters, &o)
	b.letterRoom = newLetterRoom(b.messages.letters, b.forwarder, &o)
	b.fullReport = fullReport{journal: b.journal, forwarder: b.forwarder, log: o.Log}
	b.NoteForgotten(time.Now().Unix())
	b.forwarder.Start(forward.Counts{Delivered: recovered.Delivered, Dead: recovered.Dead})
	b.context, b.cancel = context.WithCancel(context.Background())
	b.housekeeping = loop.New(o.Log, "housekeeping", b.housekeep)
	b.housekeeping.Start()
	return b, nil
}

// housekeep does once a second what is not urgent.
func (b *Outbox) housekeep(stopping bool) time.Duration {
	if stopping {
		return 0
	}
	now := time.Now()
	b.fullReport.round(now)
	b.standing.save(b.forwarder)
	b.letterRoom.round(b.context, now)
	b.suspensions.Follow(b.forwarder.Resume)
	b.requeuer.round(b.context)
	return housekeepingInterval
}

// Answers returns, once, the devices' answers to commands that were in the journal at the start and are not stored yet.
func (b *Outbox) Answers() []Answer {
	answers := b.answers
	b.answers = nil
	return answers
}

// Journal returns the journal, for devices' answers to commands and for small states of others.
func (b *Outbox) Journal() *journal.Journal { return b.journal }

// Collectors read the metrics of the journal, the forwarder and the dead letters.
func (b *Outbox) Collectors() []prometheus.Collector {
	return []prometheus.Collector{b.journal.Collector(), b.forwarder.Collector(), deadletter.Collector(b.letterRoom.last)}
}

// Requeue puts some of the dead letters that an operator has requeued into the journal. It returns after about 0.5 ms.
func (b *Outbox) Requeue() { b.requeuer.take() }

// NoteForgotten publishes which timestamps the replay memory refuses, for the journal to keep, at most once a second. It is
// called after the memory has expired ids, with the time in seconds since 1970.
func (b *Outbox) NoteForgotten(now int64) { b.forgotten.note(now) }

// WatchWritable has the disk's part of the outbox looked at, whether it can be written. The journal looks by itself.
func (b *Outbox) WatchWritable(w *writable.Checks) {
	w.Add("dead.db", b.messages.letters.Writable)
	w.Add("suspended", func(context.Context) error { return b.suspensions.Writable() })
}

// Close ends the outbox. It waits up to within for the backend to take what is queued, and up to two seconds for a
// database. What the backend has not taken is in the journal.
func (b *Outbox) Close(within time.Duration) {
	b.stopHousekeeping()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := b.forwarder.Close(ctx); err != nil {
		b.log.Warn("some accepted messages are not delivered yet; they are delivered after the next start", "why", err)
	}
	b.closeFiles()
}

func (b *Outbox) stopHousekeeping() {
	b.cancel()
	if b.housekeeping.Close(time.Second) { // else the database does not answer
		b.requeuer.stop()
		b.standing.save(b.forwarder)
	}
}

// abort ends what a failing Open has begun: nothing has been sent yet.
func (b *Outbox) abort() {
	if b.forwarder != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = b.forwarder.Close(ctx) // the error says that messages are left
	}
	b.closeFiles()
}

// closeFiles closes the journal and the dead letters, as far as they are open.
func (b *Outbox) closeFiles() {
	if b.journal != nil {
		if err := b.journal.Close(); err != nil {
			b.log.Error("could not close the journal", "error", err)
		}
	}
	if letters := b.messages.letters; letters != nil {
		if err := letters.Close(); err != nil {
			b.log.Error("could not close the dead letters", "error", err)
		}
	}
}

// Checks returns what /healthz asks: each says what is wrong, nil if nothing is. Any goroutine may call them.
func (b *Outbox) Checks() []func() error {
	return []func() error{
		func() error { return b.journal.Stats().Err },
		b.refusing,
		b.letterRoom.wrong,
	}
}

func (b *Outbox) refusing() error {
	f := b.forwarder.Stats()
	if !f.Refusing {
		return nil
	}
	return fmt.Errorf("the backend is refusing every message since %s, with status %d; nothing is given up",
		f.RefusingSince.UTC().Format(time.RFC3339), f.RefusingStatus)
}
