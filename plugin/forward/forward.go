// Package forward delivers accepted messages to the HTTP backend: each device's messages in order, at least once,
// retried until the backend has taken or refused them.
package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

var (
	// ErrFull is returned by Enqueue when Config.MaxPending is reached.
	ErrFull = errors.New("the queue to the backend is full")
	// ErrClosed is returned by Enqueue and Close once Close has been called.
	ErrClosed = errors.New("the forwarder is closed")
	// ErrUnreadable is what Store.Load returns, wrapped or not, for a message that is damaged or gone for good.
	ErrUnreadable = errors.New("the message cannot be read any more")

	errSuspended = errors.New("the backend answered 410 Gone; resume its delivery")
)

// What a zero field of Config stands for.
const (
	DefaultTimeout     = 5 * time.Second
	DefaultConcurrency = 64
	DefaultMaxPending  = 1 << 26
	DefaultLinger      = 20 * time.Millisecond
)

// MaxBatch is the largest Config.Batch.
const MaxBatch = 1000

// closeGrace is how long Close waits for the workers once every connection has been cut. Only a callback or a Store
// that blocks can make it that long.
const closeGrace = 2 * time.Second

// Config says where messages go and what delivering them may cost.
type Config struct {
	// URL is an absolute http or https URL. Every {device_id} in its path or query stands for the device's id,
	// escaped; there must be none in batch mode. It may not carry user information or a fragment.
	URL string
	// Timeout bounds one request, from dialling to the last byte of the response.
	Timeout time.Duration
	// Concurrency is the largest number of requests in flight.
	Concurrency int
	// MaxAge is the time since its acceptance after which a message is not sent again and becomes a dead letter.
	// 0: no limit.
	MaxAge time.Duration
	// Batch above 1 is batch mode: up to so many messages, at most MaxBatch, go in one request, as a JSON array of
	// CloudEvents. They are answered together, by the status alone: the callback of New is never called. A lane that
	// could be sent waits up to Linger for others to fill the batch.
	Batch  int
	Linger time.Duration
	// BearerToken, if not empty, is sent as "Authorization: Bearer TOKEN".
	BearerToken []byte
	// SigningSecret, if not empty, makes every request carry a signature by Standard Webhooks 1.0: "whsec_" and the
	// key in base64, or the key itself.
	SigningSecret []byte
	// TLS is used for https; nil stands for the system's roots and no client certificate. It is cloned.
	TLS *tls.Config
	// MaxPending bounds the messages not yet delivered, which cost some 10 bytes of memory each, and 110 a device.
	MaxPending int
	// Version goes into the User-Agent, mosquitto-bouncer/VERSION.
	Version string

	// Gone, if not nil, is called when the backend answers 410 Gone: from then on nothing is sent to that URL before
	// Resume. The unit is the device when its id is part of Config.URL, for each device then has a URL of its own;
	// else device is "" and everything is suspended. A worker calls Gone, once each time delivery is suspended, so
	// that the caller can write it down and name it in Suspended at the next start.
	Gone func(device, url string)
	// Suspended lists the devices that Gone was called for and Resume was not; "" stands for everything.
	Suspended []string
	// Counts are those of earlier processes.
	Counts Counts

	// idle overrides maxIdleConn and courier replaces HTTP, both for tests.
	idle    time.Duration
	courier func() courier
}

// Counts are what became of messages before New. Those still pending are not among them: they are counted when they are
// enqueued again.
type Counts struct{ Delivered, Dead uint64 }

// Message is one accepted publish.
type Message struct {
	DeviceID   string
	MessageID  string    // UUID; its letter case does not matter
	Timestamp  int64     // the device's, Unix seconds
	AcceptedAt time.Time // Config.MaxAge counts from here
	Topic      string
	Payload    []byte // one JSON value, sent as it is
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
	// Dead keeps a message that is not to be delivered. An error leaves it first in its lane and makes Dead alone be
	// repeated, after a back-off.
	Dead(pos uint64, d DeadLetter) error
}

// DeadLetter says why a message is given up.
type DeadLetter struct {
	Reason   string // one of the constants below
	Status   int    // of the response, 0 if there was none
	Excerpt  string // what its body begins with: valid UTF-8, at most 1 KiB; may hold control characters
	Attempts int    // requests with this message, since the start of the process
}

// Why a message became a dead letter. The strings are stable.
const (
	ReasonRefused    = "refused"    // the backend answered 3xx or a final 4xx
	ReasonExpired    = "expired"    // older than Config.MaxAge
	ReasonPanic      = "panic"      // delivering it panicked, maxPanics times
	ReasonUnreadable = "unreadable" // Store.Load returned ErrUnreadable
)

// Answer is the body with which the backend took a message.
type Answer struct {
	Message     *Message // the Forwarder's again when the callback returns; its strings may be kept
	Status      int      // 2xx
	Body        []byte   // not empty, at most 64 KiB; belongs to the callee
	ContentType string   // as the backend sent it, "" if it sent none
	// Latency is the backend's: of the one request that succeeded, from sending to the last byte of the response.
	Latency time.Duration
}

// Stats is a consistent view of a Forwarder: Accepted = Delivered + Dead + Pending, always.
type Stats struct {
	Accepted  uint64 // Config.Counts and what was taken by Enqueue
	Delivered uint64 // answered 2xx
	Dead      uint64 // given up
	Pending   int    // neither yet; those in flight included
	Lanes     int    // devices with a pending message
	InFlight  int    // requests
	Retries   uint64 // requests that failed and are, or were, to be repeated
	// StoreErrors counts the times that the Store failed to load a message or to keep a dead letter.
	StoreErrors uint64
	// AnswersDropped counts 2xx bodies that were not handed on: too large, compressed, or the callback panicked.
	AnswersDropped uint64
	// Down says that the backend as a whole seems down: one request at a time asks whether it is back.
	Down bool
	// Suspended says that nothing is sent before Resume(""), SuspendedDevices for how many devices that is so.
	Suspended        bool
	SuspendedDevices int
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
	target  target
	store   Store
	answer  func(Answer)
	log     *slog.Logger
	sampler sampler
	hangUp  func() // makes every request in flight, and every later one, fail at once

	drained chan struct{} // closed when Close has been called and nothing is left to be sent
	exited  chan struct{} // closed when the last worker has ended

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
	latency        Histogram
}

// New starts the workers. answer, which may be nil, is called once for every message taken with a body, in the order
// of the device's messages, by several workers at a time, and before the Store is told; it must return quickly.
func New(cfg Config, store Store, answer func(Answer), log *slog.Logger) (*Forwarder, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = DefaultConcurrency
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = DefaultMaxPending
	}
	if cfg.Linger == 0 {
		cfg.Linger = DefaultLinger
	}
	if cfg.Timeout < 0 || cfg.Concurrency < 0 || cfg.MaxAge < 0 || cfg.MaxPending < 0 || cfg.Batch < 0 || cfg.Linger < 0 {
		return nil, errors.New("backend: timeout, concurrency, maximum age, batch, linger and queue bound must not be negative")
	}
	if cfg.Batch > MaxBatch {
		return nil, fmt.Errorf("backend: batch is %d; at most %d messages fit", cfg.Batch, MaxBatch)
	}
	f := &Forwarder{
		cfg:       cfg,
		store:     store,
		answer:    answer,
		log:       log,
		sampler:   sampler{limiter: rate.NewLimiter(10, 100)},
		hangUp:    func() {},
		drained:   make(chan struct{}),
		exited:    make(chan struct{}),
		workers:   cfg.Concurrency,
		accepted:  cfg.Counts.Delivered + cfg.Counts.Dead,
		delivered: cfg.Counts.Delivered,
		dead:      cfg.Counts.Dead,
	}
	var err error
	if f.target, err = parseTarget(cfg.URL); err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	if cfg.Batch > 1 && f.target.perDevice() {
		return nil, fmt.Errorf("backend: url %q: with batch, messages of many devices go in one request: "+
			"remove %s, or batch", cfg.URL, placeholder)
	}
	if f.cfg.courier == nil {
		c, err := newClient(cfg, f.target)
		if err != nil {
			return nil, fmt.Errorf("backend: %w", err)
		}
		f.cfg.courier = func() courier { return c.courier() }
		if cfg.Batch > 1 {
			f.cfg.courier = func() courier { return c.batchCourier() }
		}
		f.hangUp = c.hangUp
	}
	f.schedule.init(&f.mu, &cfg)
	for range cfg.Concurrency {
		go f.work()
	}
	return f, nil
}

// Enqueue takes the message at pos for delivery after all others of the device. It never blocks: it returns ErrFull when
// the message would exceed the bound, and ErrClosed after Close. It keeps device, which is best a string that lives
// anyway.
func (f *Forwarder) Enqueue(device string, pos uint64) error { return f.enqueue(device, pos, false) }

// Requeue is Enqueue for a message that was counted as dead and, under a new position, is to be delivered after all.
func (f *Forwarder) Requeue(device string, pos uint64) error { return f.enqueue(device, pos, true) }

func (f *Forwarder) enqueue(device string, pos uint64, wasDead bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	if f.pending >= f.cfg.MaxPending {
		return ErrFull
	}
	if wasDead && f.dead > 0 {
		f.dead--
	} else {
		f.accepted++
	}
	f.pending++
	f.schedule.add(device, pos)
	return nil
}

// Resume goes on delivering a device's messages after Gone, or everything if device is "". It reports whether any were
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
		Down:             f.breaker.open,
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

// Close takes no more messages, goes on delivering until none is left that is not suspended or ctx is done, then cuts
// what is in flight and ends the workers. The error says how many messages were not delivered: they are still the
// Store's. The answer callback is not called after it has returned, unless the callback itself was what Close waited
// for in vain.
func (f *Forwarder) Close(ctx context.Context) error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return ErrClosed
	}
	f.closed, f.draining = true, true
	f.drain()
	f.idle.Broadcast() // what lingers need not
	f.mu.Unlock()

	select {
	case <-f.drained:
	case <-ctx.Done():
	}

	f.mu.Lock()
	f.schedule.stop()
	f.mu.Unlock()
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
	pending, inFlight := f.pending, f.inFlight
	f.mu.Unlock()
	why := context.Cause(ctx)
	if why == nil {
		why = errSuspended
	}
	switch {
	case stuck:
		return fmt.Errorf("%d messages were not delivered, and %d deliveries do not end", pending, inFlight)
	case pending > 0:
		return fmt.Errorf("%d messages were not delivered: %w", pending, why)
	}
	return nil
}
