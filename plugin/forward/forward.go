// Package forward delivers accepted messages to a Sink: each device's messages in order, at least once, retried until the
// backend behind the sink has taken or refused them. It knows no protocol: package webhook is the sink for HTTP.
package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

var (
	// ErrFull is returned by Admit when Config.MaxPending is reached.
	ErrFull = errors.New("the queue to the backend is full")
	// ErrShare is returned by Admit when the device has taken its share of the queue.
	ErrShare = errors.New("the device has used up its share of the queue to the backend")
	// ErrClosed is returned by Admit and Close once Close has been called.
	ErrClosed = errors.New("the forwarder is closed")
	// ErrUnreadable is what Store.Load returns, wrapped or not, for a message that is damaged or gone for good.
	ErrUnreadable = errors.New("the message cannot be read any more")

	// ErrNoRoom is what Store.Dead returns, wrapped or not, where there is no room for the device's dead letter.
	ErrNoRoom = errors.New("no room for a dead letter")

	errSuspended = errors.New("the backend answered 410 Gone; resume its delivery")
)

// What a zero field of Config stands for.
const (
	DefaultConcurrency = 64
	DefaultMaxPending  = 1 << 26
	DefaultLinger      = 20 * time.Millisecond
)

// MaxBatch is the largest Config.Batch.
const MaxBatch = 1000

// laneShare is which part of the queue one device may take, in messages and in bytes: one that sends faster than the
// backend answers must leave room for the others. One message always fits, if the queue has room for it.
const laneShare = 4

// ShareOf is the Config.MaxBytes of which a device's share is so many bytes.
func ShareOf(bytes int64) int64 { return bytes * laneShare }

// closeGrace is how long Close waits for the workers once every connection has been cut. Only a callback or a Store
// that blocks can make it that long.
const closeGrace = 2 * time.Second

// Config says where messages go and what delivering them may cost.
type Config struct {
	// Sink is what the messages are handed to.
	Sink Sink
	// Concurrency is the largest number of requests in flight.
	Concurrency int
	// MaxAge is the time since its acceptance after which a message is not sent again and becomes a dead letter.
	// 0: no limit.
	MaxAge time.Duration
	// Batch above 1 is batch mode: up to so many messages, at most MaxBatch, go in one request. They
	// are answered together, without an answer for any of them. A lane that could be sent waits up to Linger for others to fill the batch.
	Batch  int
	Linger time.Duration
	// Unordered lets a device's messages overtake each other: they use as many connections as are free. Else each waits
	// for the one before.
	Unordered bool
	// Standing is what Forwarder.Standing returned in the process before, for the same backend.
	Standing Standing
	// Registered, if not nil, returns how many devices there may be at most. It is called with a lock held and must not
	// wait.
	Registered func() int
	// MaxPending bounds the messages not yet delivered, which cost some 10 bytes of memory each, and 110 a device. One
	// device's may be a quarter.
	MaxPending int
	// MaxBytes is how much the Store has room for: one device's messages may take about a quarter. 0: any number.
	MaxBytes int64
	// Gone, if not nil, is called when an attempt means Gone: from then on nothing is sent to that address before Resume.
	// The unit is the device where it has an address of its own; else device is "" and everything is suspended. A worker
	// calls Gone, once each time delivery is suspended, so that the caller can write it down and name it in Suspended at
	// the next start.
	Gone func(device, address string)
	// Suspended lists the devices that Gone was called for and Resume was not; "" stands for everything.
	Suspended []string

	// batchBytes overrides maxBatchBytes, for tests.
	batchBytes int
}

// Counts are what happened to messages in earlier processes. Those still pending are not among them: they are counted when
// they are enqueued again.
type Counts struct{ Delivered, Dead uint64 }

// Message is one accepted publish.
type Message struct {
	DeviceID   string
	MessageID  string    // UUID; its letter case does not matter
	Timestamp  int64     // the device's, Unix seconds
	AcceptedAt time.Time // Config.MaxAge counts from here
	// FirstAcceptedAt is AcceptedAt, or earlier where the message was a dead letter and was requeued.
	FirstAcceptedAt time.Time
	Topic           string
	Payload         []byte // one JSON value, sent as it is
	// Traceparent is passed on in the header of that name, in a batch as the event's attribute, if it is valid by W3C
	// Trace Context.
	Traceparent string
}

// Store is where the messages are. Its methods are called by several workers at a time and may do I/O; a panic in one
// counts as an error.
type Store interface {
	// Load reads a message into m, whose DeviceID is set: every other field. m.Payload is empty and is to be appended
	// to; m.Topic may be left if it is right already. The Forwarder uses m again. An error makes Load be repeated,
	// after a back-off; ErrUnreadable makes the message a dead letter.
	Load(pos uint64, m *Message) error
	// Delivered notes that the backend has taken a message, before the device's next one is sent.
	Delivered(pos uint64)
	// Dead keeps a message of the device that is not to be delivered. An error leaves it first in its lane and makes Dead
	// alone be repeated, after a back-off, or if it is ErrNoRoom after Unblock.
	Dead(device string, pos uint64, d DeadLetter) error
}

// DeadLetter says why a message is given up.
type DeadLetter struct {
	Reason   string // one of the constants below
	Status   int    // Result.Status: 0 if there was no response
	Excerpt  string // what its body begins with: valid UTF-8, at most 1 KiB; may hold control characters
	Attempts int    // requests with this message, since the start of the process
	// DiedAt is the same however often the Store is notified of this death.
	DiedAt time.Time
}

// Why a message became a dead letter. The strings are stable.
const (
	ReasonRefused    = "refused"    // the backend refused it for good
	ReasonExpired    = "expired"    // older than Config.MaxAge
	ReasonPanic      = "panic"      // delivering it panicked, maxPanics times
	ReasonUnreadable = "unreadable" // Store.Load returned ErrUnreadable
	// ReasonUnreadableAnswer: the backend's answers to it could not be read, maxMisread times.
	ReasonUnreadableAnswer = "unreadable_answer"
)

// Response is the body with which the backend took a message.
type Response struct {
	Message     *Message // the Forwarder's again when the callback returns; its strings may be kept
	Status      int      // Result.Status
	Body        []byte   // not empty, at most 64 KiB; belongs to the callee
	ContentType string   // as the backend sent it, "" if it sent none
	// Latency is the backend's: of the one request that succeeded, from sending to the last byte of the response.
	Latency time.Duration
}

// Stats is a consistent view of a Forwarder: Accepted = Delivered + Dead + Pending, always.
type Stats struct {
	Accepted  uint64 // what Start was told of and what Enqueue and Restore took
	Delivered uint64 // taken
	Dead      uint64 // given up
	Pending   int    // neither yet; those in flight included
	Lanes     int    // devices with a pending message
	InFlight  int    // requests
	Retries   uint64 // requests that failed and are, or were, to be repeated
	// StoreErrors counts the times that the Store failed to load a message or to keep a dead letter.
	StoreErrors uint64
	// AnswersDropped counts bodies of responses that were not handed on: too large, compressed, or the callback panicked.
	AnswersDropped uint64
	// Down says that the backend as a whole seems down: one request at a time asks whether it is back.
	Down bool
	// Suspended says that nothing is sent before Resume(""), SuspendedDevices for how many devices that is so.
	Suspended        bool
	SuspendedDevices int
	// Refusing says that the backend refuses whatever it is sent, with RefusingStatus, since RefusingSince. Down is false
	// then.
	Refusing       bool
	RefusingStatus int
	RefusingSince  time.Time
	// BlockedDevices have a dead letter that the Store has no room for: nothing of theirs is sent.
	BlockedDevices int
	// Latency is the time from a message's acceptance to its delivery.
	Latency Histogram
}

// Forwarder is the queue of messages and the workers that deliver them. All its methods are safe for concurrent use.
//
// Every device has a lane: a FIFO of the positions of its messages, of which only the first is ever in flight, or in
// batch mode the first few, together. A lane is ready, in flight, or waiting for its back-off to end, and does not exist
// when it has nothing to send. A fixed set of workers takes one parcel at a time from the lanes that have been ready
// longest, and only then reads its messages from the Store.
type Forwarder struct {
	cfg     Config
	store   Store
	respond func(Response)
	log     *slog.Logger
	sampler sampler
	ctx     context.Context // of every Send
	hangUp  func()          // ends ctx

	intake intake
	wake   chan struct{} // holds one; see Dispatch
	quit   chan struct{} // closed to end the dispatcher
	shut   atomic.Bool   // closed, to be read without the lock
	open   atomic.Int64  // messages enqueued and not settled

	drained chan struct{} // closed when Close has been called and nothing is left to be sent
	exited  chan struct{} // closed when the last worker and the dispatcher have ended

	mu sync.Mutex // protects everything below; never held during I/O, logging or a callback
	schedule
	closed         bool
	isDrained      bool
	workers        int
	accepted       uint64
	delivered      uint64
	dead           uint64
	pending        int
	retries        uint64
	storeErrors    uint64
	answersDropped uint64
	outage         outage
	responses      responses
	latency        Histogram
}

// New returns a Forwarder that sends nothing before Start. respond, which may be nil, is called once for every message taken with a body, in the order
// of the device's messages, by several workers at a time, and before the Store is told; it must return quickly.
func New(cfg Config, store Store, respond func(Response), log *slog.Logger) (*Forwarder, error) {
	if cfg.Concurrency == 0 {
		cfg.Concurrency = DefaultConcurrency
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = DefaultMaxPending
	}
	if cfg.Linger == 0 {
		cfg.Linger = DefaultLinger
	}
	if cfg.Concurrency < 0 || cfg.MaxAge < 0 || cfg.MaxPending < 0 || cfg.MaxBytes < 0 || cfg.Batch < 0 || cfg.Linger < 0 {
		return nil, errors.New("backend: concurrency, maximum age, batch, linger and queue bound must not be negative")
	}
	if cfg.Batch > MaxBatch {
		return nil, fmt.Errorf("backend: batch is %d; at most %d messages fit", cfg.Batch, MaxBatch)
	}
	if cfg.batchBytes == 0 {
		cfg.batchBytes = maxBatchBytes
	}
	f := &Forwarder{
		cfg:     cfg,
		store:   store,
		respond: respond,
		log:     log,
		sampler: sampler{limiter: rate.NewLimiter(10, 100)},
		wake:    make(chan struct{}, 1),
		quit:    make(chan struct{}),
		drained: make(chan struct{}),
		exited:  make(chan struct{}),
	}
	f.ctx, f.hangUp = context.WithCancel(context.Background())
	f.schedule.init(&f.mu, &cfg, f.arrive, func() bool { return f.intake.n.Load() > 0 })
	return f, nil
}

// Restore takes a message of an earlier process, before Start, in the order in which they were accepted.
func (f *Forwarder) Restore(device string, pos uint64, bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.schedule.add(device, pos, uint32(min(bytes, math.MaxUint32)))
	f.accepted++
	f.pending++
	f.open.Add(1)
}

// Start starts the workers, once, with what happened to messages in earlier processes.
func (f *Forwarder) Start(before Counts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accepted += before.Delivered + before.Dead
	f.delivered, f.dead = before.Delivered, before.Dead
	f.workers = f.cfg.Concurrency + 1
	go f.dispatcher()
	for range f.cfg.Concurrency {
		go f.work()
	}
}

// Admit reports whether there is room for a message of the device: nil, ErrFull, ErrShare or ErrClosed. Like Enqueue it
// takes no lock that the workers hold for longer than a swap.
func (f *Forwarder) Admit(device string) error {
	switch {
	case f.shut.Load():
		return ErrClosed
	case f.open.Load() >= int64(f.cfg.MaxPending):
		return ErrFull
	}
	if crowding := f.crowding.Load(); crowding != nil {
		if _, is := (*crowding)[device]; is {
			return ErrShare
		}
	}
	return nil
}

// Enqueue takes the message at pos, which takes so many bytes in the Store, for delivery after all others of the device.
// It is for messages that Admit had room for. It neither blocks nor allocates in the long run, and wakes no worker: see
// Dispatch. What comes after Close stays in the Store. It keeps device, which is best a string that lives anyway.
func (f *Forwarder) Enqueue(device string, pos uint64, bytes int) {
	if f.shut.Load() {
		return
	}
	f.open.Add(1)
	f.intake.put(arrival{device, pos, uint32(min(bytes, math.MaxUint32))})
}

// Resume continues delivering a device's messages after Gone, or everything if device is "". It reports whether any were
// suspended.
func (f *Forwarder) Resume(device string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	resumed := false
	if device != "" {
		resumed = f.schedule.resume(device, now)
	} else {
		resumed = f.halted || len(f.suspended) > 0
		f.halted = false
		for device := range f.suspended {
			f.schedule.resume(device, now)
		}
	}
	f.idle.Broadcast()
	return resumed
}

// Stats returns the counters, all of the same moment.
func (f *Forwarder) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.arriveNow()
	status := 0
	if f.standing.refusing {
		status = f.standing.status
	}
	return Stats{
		Accepted:         f.accepted,
		Delivered:        f.delivered,
		Dead:             f.dead,
		Pending:          f.pending,
		Lanes:            len(f.lanes),
		InFlight:         f.inFlight,
		Retries:          f.retries,
		StoreErrors:      f.storeErrors,
		AnswersDropped:   f.answersDropped,
		Down:             f.breaker.open && !f.standing.refusing,
		Refusing:         f.standing.refusing,
		RefusingStatus:   status,
		RefusingSince:    f.standing.since,
		BlockedDevices:   len(f.blocked),
		Suspended:        f.halted,
		SuspendedDevices: len(f.suspended),
		Latency:          f.latency,
	}
}

// drain notes whether Close need not wait any more.
func (f *Forwarder) drain() {
	if f.closed && !f.isDrained && f.schedule.stuck() {
		f.isDrained = true
		close(f.drained)
	}
}

// A Backlog is what waits of one device.
type Backlog struct {
	Device   string
	Messages int
	Bytes    int64 // about
}

// Longest returns the n devices of which the most waits, in bytes. It looks at every lane, so it is for rare occasions.
func (f *Forwarder) Longest(n int) (longest []Backlog) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lanes {
		b := Backlog{l.device, int(l.n), int64(l.units) * laneUnit}
		if len(longest) == n && b.Bytes <= longest[n-1].Bytes {
			continue
		}
		i, _ := slices.BinarySearchFunc(longest, b, func(x, y Backlog) int { return cmp.Compare(y.Bytes, x.Bytes) })
		longest = slices.Insert(longest, i, b)
		longest = longest[:min(n, len(longest))]
	}
	return longest
}

// Close takes no more messages, continues delivering until none is left that is not suspended or ctx is done, then cuts
// what is in flight and ends the workers. Where ctx has a deadline, the last quarter of the time until then is left to
// requests in flight: what is cut off goes to the backend again. The error says how many messages were not
// delivered: they are still the Store's. The callback respond is not called after it has returned, unless the callback
// itself was what Close waited for without success. It may be called before Start.
func (f *Forwarder) Close(ctx context.Context) error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return ErrClosed
	}
	f.shut.Store(true)
	f.arrive()
	f.closed, f.draining = true, true
	f.drain()
	f.idle.Broadcast() // what lingers need not
	if f.workers == 0 {
		close(f.exited)
	}
	f.mu.Unlock()

	var enough <-chan time.Time
	if deadline, ok := ctx.Deadline(); ok {
		timer := time.NewTimer(time.Until(deadline) * 3 / 4)
		defer timer.Stop()
		enough = timer.C
	}
	select {
	case <-f.exited:
	case <-f.drained:
	case <-enough:
	case <-ctx.Done():
	}

	f.mu.Lock()
	f.schedule.stop()
	f.mu.Unlock()
	close(f.quit)
	select {
	case <-f.exited:
	case <-f.drained:
	case <-ctx.Done():
	}
	f.hangUp()

	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	stuck := false
	select {
	case <-f.exited:
	case <-grace.C:
		stuck = true
	}

	f.mu.Lock()
	f.arrive() // what Enqueue was about to put there when Close began
	pending, inFlight, halted := f.pending, f.inFlight, f.halted || len(f.suspended) > 0
	f.mu.Unlock()
	why := context.Cause(ctx)
	switch {
	case why != nil:
	case halted:
		why = errSuspended
	default:
		why = context.DeadlineExceeded
	}
	switch {
	case stuck:
		return fmt.Errorf("%d messages were not delivered, and %d deliveries have not ended", pending, inFlight)
	case pending > 0:
		return fmt.Errorf("%d messages were not delivered: %w", pending, why)
	}
	return nil
}
