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
	// ErrFull is returned by Enqueue when one of the queue's two bounds is reached.
	ErrFull = errors.New("the queue to the backend is full")
	// ErrClosed is returned by Enqueue and Close once Close has been called.
	ErrClosed = errors.New("the forwarder is closed")
)

// What a zero field of Config stands for.
const (
	DefaultTimeout     = 5 * time.Second
	DefaultConcurrency = 64
	DefaultMaxMessages = 65536
	DefaultMaxBytes    = 64 << 20
)

// laneShare is which part of the queue one device may take, in messages and in bytes: one that sends faster than the
// backend answers must leave room for the others. One message always fits, if the queue has room for it.
const laneShare = 4

// closeGrace is how long Close waits for the workers once every connection has been cut. Only a callback that blocks
// can make it that long.
const closeGrace = 2 * time.Second

// Config says where messages go and what delivering them may cost.
type Config struct {
	// URL is an absolute http or https URL. Every {device_id} in its path or query stands for the device's id,
	// escaped. It may not carry user information or a fragment.
	URL string
	// Timeout bounds one request, from dialling to the last byte of the response.
	Timeout time.Duration
	// Concurrency is the largest number of requests in flight.
	Concurrency int
	// MaxAge is the time since its acceptance after which a message is not sent again and becomes a dead letter.
	// 0: no limit.
	MaxAge time.Duration
	// BearerToken, if not empty, is sent as "Authorization: Bearer TOKEN".
	BearerToken []byte
	// TLS is used for https; nil stands for the system's roots and no client certificate. It is cloned.
	TLS *tls.Config
	// MaxMessages and MaxBytes bound the messages not yet delivered, those in flight included. The bytes are those of
	// payload, topic and ids. One device's may be a quarter of either.
	MaxMessages int
	MaxBytes    int64
	// Version goes into the User-Agent, mosquitto-bouncer/VERSION.
	Version string

	// idle overrides maxIdleConn and courier replaces HTTP, both for tests.
	idle    time.Duration
	courier func() courier
}

// Message is one accepted publish.
type Message struct {
	DeviceID   string
	MessageID  string    // UUID; its letter case does not matter
	Timestamp  int64     // the device's, Unix seconds
	AcceptedAt time.Time // Config.MaxAge counts from here
	Topic      string
	Payload    []byte // sent as it is
}

func (m *Message) size() int64 {
	return int64(len(m.DeviceID) + len(m.MessageID) + len(m.Topic) + len(m.Payload))
}

// Answer is the body with which the backend took a message.
type Answer struct {
	Message     *Message
	Status      int    // 2xx
	Body        []byte // not empty, at most 64 KiB; belongs to the callee
	ContentType string // as the backend sent it, "" if it sent none
	// Latency is the backend's: of the one request that succeeded, from sending to the last byte of the response.
	Latency time.Duration
}

// Stats is a consistent view of a Forwarder: Accepted = Delivered + Dead + Pending, always.
type Stats struct {
	Accepted  uint64 // taken by Enqueue
	Delivered uint64 // answered 2xx
	Dead      uint64 // given up
	Pending   int    // neither yet; those in flight included
	Bytes     int64  // of the pending messages, as Config.MaxBytes counts them
	Lanes     int    // devices with a pending message
	InFlight  int    // requests
	Retries   uint64 // attempts that failed and are, or were, to be repeated
	// AnswersDropped counts 2xx bodies that were not handed on: too large, compressed, or the callback panicked.
	AnswersDropped uint64
	// Suspended says that the backend as a whole seems down: one request at a time asks whether it is back.
	Suspended bool
}

// Forwarder is the queue of messages and the workers that deliver them. All its methods are safe for concurrent use.
//
// Every device has a lane: a FIFO of its messages of which only the first is ever in flight. A lane is ready, in
// flight, or waiting for its back-off to end, and does not exist when it has nothing to send. A fixed set of workers
// takes one message at a time from the lane that has been ready longest.
type Forwarder struct {
	cfg     Config
	answer  func(Answer)
	log     *slog.Logger
	sampler sampler
	hangUp  func() // makes every request in flight, and every later one, fail at once

	drained chan struct{} // closed when Close has been called and nothing is pending
	exited  chan struct{} // closed when the last worker has ended

	mu sync.Mutex // protects everything below; never held during I/O, logging or a callback
	schedule
	closed         bool
	workers        int
	accepted       uint64
	delivered      uint64
	dead           uint64
	pending        int
	bytes          int64
	retries        uint64
	answersDropped uint64
	outage         outage
}

// New starts the workers. answer, which may be nil, is called once for every message taken with a body, in the order
// of the device's messages, by several workers at a time; it must return quickly and may keep what it is given.
func New(cfg Config, answer func(Answer), log *slog.Logger) (*Forwarder, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = DefaultConcurrency
	}
	if cfg.MaxMessages == 0 {
		cfg.MaxMessages = DefaultMaxMessages
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.Timeout < 0 || cfg.Concurrency < 0 || cfg.MaxAge < 0 || cfg.MaxMessages < 0 || cfg.MaxBytes < 0 {
		return nil, errors.New("backend: timeout, concurrency, maximum age and queue bounds must not be negative")
	}
	f := &Forwarder{
		cfg:     cfg,
		answer:  answer,
		log:     log,
		sampler: sampler{limiter: rate.NewLimiter(10, 100)},
		hangUp:  func() {},
		drained: make(chan struct{}),
		exited:  make(chan struct{}),
		workers: cfg.Concurrency,
	}
	if f.cfg.courier == nil {
		c, err := newClient(cfg)
		if err != nil {
			return nil, fmt.Errorf("backend: %w", err)
		}
		f.cfg.courier = func() courier { return c.courier() }
		f.hangUp = c.hangUp
	}
	f.schedule.init(&f.mu, cfg.Concurrency)
	for range cfg.Concurrency {
		go f.work()
	}
	return f, nil
}

// Enqueue takes m for delivery; its payload belongs to the Forwarder from then on. It never blocks: it returns ErrFull
// when m would exceed a bound, and ErrClosed after Close.
func (f *Forwarder) Enqueue(m Message) error {
	e := &entry{Message: m}
	size := m.size()

	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	if f.pending >= f.cfg.MaxMessages || f.bytes+size > f.cfg.MaxBytes {
		return ErrFull
	}
	if l := f.lanes[m.DeviceID]; l != nil && (l.count >= max(1, f.cfg.MaxMessages/laneShare) || l.bytes+size > f.cfg.MaxBytes/laneShare) {
		return ErrFull
	}
	f.accepted++
	f.pending++
	f.bytes += size
	f.schedule.add(e)
	return nil
}

// Stats returns the counters, all of the same moment.
func (f *Forwarder) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Stats{
		Accepted:       f.accepted,
		Delivered:      f.delivered,
		Dead:           f.dead,
		Pending:        f.pending,
		Bytes:          f.bytes,
		Lanes:          len(f.lanes),
		InFlight:       f.inFlight,
		Retries:        f.retries,
		AnswersDropped: f.answersDropped,
		Suspended:      f.breaker.open,
	}
}

// Close takes no more messages, goes on delivering until none is left or ctx is done, then cuts what is in flight and
// ends the workers. The error says how many messages were not delivered. The answer callback is not called after it
// has returned, unless the callback itself was what Close waited for in vain.
func (f *Forwarder) Close(ctx context.Context) error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return ErrClosed
	}
	f.closed = true
	if f.pending == 0 {
		close(f.drained)
	}
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
	switch {
	case stuck:
		return fmt.Errorf("%d messages were not delivered, and %d deliveries do not end", pending, inFlight)
	case pending > 0:
		return fmt.Errorf("%d messages were not delivered: %w", pending, context.Cause(ctx))
	}
	return nil
}
