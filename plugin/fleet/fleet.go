// Package fleet is the connection of a gateway to NATS JetStream, and the stream that takes accepted messages.
//
//	fleet     Start, Close, what is known of NATS
//	conn      the connection: its settings and callbacks
//	stream    the stream: made if it is missing, checked if it is there
//	publish   one attempt to have a message stored
//	subject   the subjects of devices
//
// nats.go has goroutines of its own, which cannot be recovered; every callback that it is given recovers.
package fleet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/fleetstate"
	"mosquitto-bouncer/plugin/loop"
	"mosquitto-bouncer/plugin/secret"
)

const (
	// startWithin is how long Start waits for NATS, to find at once what would be found later.
	startWithin = 3 * time.Second
	// closeWithin bounds each of the two waits of Close.
	closeWithin = 500 * time.Millisecond
	// checkTimeout bounds a check of the stream.
	checkTimeout = 5 * time.Second
	// checkEvery is the time between two checks of a stream that was right, retryEvery of one that was not. leastPause is
	// the least time between two.
	checkEvery = 10 * time.Second
	retryEvery = time.Second
	leastPause = 250 * time.Millisecond
	// complaintInterval is the least time between two log lines about the same failure of the disk.
	complaintInterval = 10 * time.Minute
	// After maxLines lines about connections, one in linesInterval is logged.
	maxLines      = 50
	linesInterval = 5 * time.Second
)

// Options say to which NATS, and how the stream is to be.
type Options struct {
	Name    string   // the gateway's, as NATS shows it
	Servers []string // URLs, at least one
	// TLS is nil for plain connections.
	TLS *tls.Config
	// Credentials are the content of a credentials file of NATS; nil: none.
	Credentials secret.Secret

	Prefix     string
	Partitions int
	Replicas   int
	Dedup      time.Duration
	MaxBytes   int64
	// MaxMessage is the largest payload, in bytes.
	MaxMessage int
	// Timeout bounds one attempt to have a message stored.
	Timeout time.Duration

	StateDir string // where the state for operators is kept
	Log      *slog.Logger
}

// A Fleet is the connection and what is known of NATS. Its methods are safe for concurrent use.
type Fleet struct {
	o    Options
	log  *slog.Logger
	loop *loop.Loop

	dialled chan struct{} // closed when the first attempt to connect is over
	nc      *nats.Conn    // then; nil: there is none

	session atomic.Pointer[session] // nil: not connected
	right   atomic.Bool             // the stream was right when it was last checked
	trouble atomic.Pointer[trouble] // why nothing is sent; nil: messages go out
	fatal   atomic.Pointer[trouble] // nil: the settings are good
	// refused is why the last attempt to connect failed.
	refused   atomic.Pointer[complaint]
	complaint atomic.Pointer[complaint] // of NATS about the connection's rights

	first     chan struct{} // closed when it is known whether NATS is there, and right
	firstOnce sync.Once
	closing   atomic.Bool
	started   bool

	// The loop's own.
	last      time.Time // of a check
	saved     *trouble  // in the file
	written   bool      // the file is what saved says
	lastState *trouble
	disk      rate.Sometimes
	made      time.Time // the stream was

	searched searched

	lines rate.Sometimes // of the log: a connection may come and go

	acks, duplicates, failed, lookups, found, reconnects atomic.Uint64

	stored, room atomic.Uint64 // bytes, of the stream; room 0: any number
	lag          atomic.Int64  // nanoseconds
}

// trouble is why nothing is sent.
type trouble struct {
	since time.Time
	err   error
}

// wrong reports whether an operator has to change something in NATS or in the settings.
func (t *trouble) wrong() bool {
	if t == nil {
		return false
	}
	_, is := errors.AsType[*Mismatch](t.err)
	return is
}

// complaint is what NATS said.
type complaint struct {
	at   time.Time
	text string
}

// New returns a Fleet that does nothing before Start. What is to be published until then waits for it.
func New(o Options) *Fleet {
	f := &Fleet{
		o: o, log: o.Log, first: make(chan struct{}), dialled: make(chan struct{}), disk: rate.Sometimes{Interval: complaintInterval},
		lines: rate.Sometimes{First: maxLines, Interval: linesInterval},
	}
	f.set(errors.New("NATS was not connected yet"))
	f.loop = loop.New(o.Log, "fleet", f.round)
	return f
}

// Start begins to connect, and returns when NATS is found to be right, or away, or startWithin is over. The error is a
// *Mismatch, because NATS is there and not as it must be, or about the settings. That NATS is away is none: it is tried again
// and again. After an error Close is to be called too.
func (f *Fleet) Start() error {
	f.started = true
	f.loop.Start()
	if err := f.connect(); err != nil {
		close(f.dialled)
		return err
	}
	select {
	case <-f.first:
	case <-time.After(startWithin):
		f.known()
		f.loop.Wake() // to tell
	}
	if t := f.trouble.Load(); t.wrong() {
		return t.err
	}
	return nil
}

// set notes why nothing is sent; nil: messages go out.
func (f *Fleet) set(err error) {
	now := f.trouble.Load()
	switch {
	case err == nil:
		f.trouble.Store(nil)
	case now == nil:
		f.trouble.Store(&trouble{time.Now(), err})
	case now.err.Error() != err.Error():
		f.trouble.Store(&trouble{now.since, err})
	}
}

// open returns the session to send in, or why nothing is sent. Before NATS has been looked for, it waits.
func (f *Fleet) open(ctx context.Context) (*session, error) {
	select {
	case <-f.first:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s := f.session.Load()
	if s != nil && s.unfit == nil && f.right.Load() {
		return s, nil
	}
	if t := f.trouble.Load(); t != nil {
		return nil, t.err
	}
	return nil, errors.New("NATS is not connected")
}

// round checks what is connected, and writes down why nothing goes out.
func (f *Fleet) round(stopping bool) (next time.Duration) {
	if stopping {
		f.save(nil)
		return 0
	}
	if pause := leastPause - time.Since(f.last); pause > 0 {
		return pause
	}
	f.last = time.Now()
	s := f.session.Load()
	next = retryEvery
	switch {
	case f.fatal.Load() != nil:
		f.set(f.fatal.Load().err)
		f.known()
	case s == nil:
		why := errors.New("NATS is not connected")
		if c := f.refused.Load(); c != nil {
			why = fmt.Errorf("NATS is not connected: %s", c.text)
		}
		f.set(why)
	case s.unfit != nil:
		f.right.Store(false)
		f.set(s.unfit)
		f.known()
	default:
		if f.check(s) {
			next = checkEvery
		}
		f.known()
	}
	select {
	case <-f.first:
		f.report()
	default: // Start still waits
	}
	return next
}

// check has the stream looked at. Where that fails, what was known before holds: it is no sign that the stream has changed.
func (f *Fleet) check(s *session) bool {
	ctx, done := s.during(context.Background(), checkTimeout)
	defer done()
	err := f.o.serverFits(s.nc.ConnectedServerVersion(), s.nc.MaxPayload()) // it may be lowered while connected
	if err == nil {
		err = f.checkStream(ctx, s.js)
	}
	_, wrong := errors.AsType[*Mismatch](err)
	switch {
	case err == nil:
		f.right.Store(true)
		f.set(nil)
		return true
	case wrong:
		f.right.Store(false)
		f.set(err)
	case f.right.Load():
		f.set(nil) // connected, and each message says what came of it
	default:
		f.set(fmt.Errorf("the stream cannot be checked: %w", f.tell(err)))
	}
	return false
}

// known ends the wait of Start.
func (f *Fleet) known() { f.firstOnce.Do(func() { close(f.first) }) }

// report tells the log and the file of a change.
func (f *Fleet) report() {
	now := f.trouble.Load()
	if now != f.lastState {
		f.lines.Do(func() { f.logChange(now) }) // if not now, in a later round
	}
	f.save(now)
}

func (f *Fleet) logChange(now *trouble) {
	switch {
	case now == nil:
		f.log.Info("messages go to NATS", "stream", StreamName(f.o.Prefix), "after", time.Since(f.lastState.since).Round(time.Millisecond))
	case now.wrong():
		f.log.Error("nothing is sent to NATS until this is corrected; messages wait in the journal", "why", now.err)
	case f.lastState == nil:
		f.log.Warn("nothing can be sent to NATS; messages wait in the journal", "why", now.err)
	}
	f.lastState = now
}

func (f *Fleet) save(t *trouble) {
	if t == f.saved && f.written {
		return
	}
	var s *fleetstate.State
	if t != nil {
		s = &fleetstate.State{Since: t.since.UTC(), Why: t.err.Error()}
	}
	if err := fleetstate.Save(f.o.StateDir, s); err != nil {
		f.disk.Do(func() { f.log.Warn("the state of NATS cannot be written for bouncerctl queue", "error", err) })
		return
	}
	f.saved, f.written = t, true
}

// Health returns what an operator has to change, in NATS or in the settings; nil if nothing. That NATS is away is no fault of
// the gateway.
func (f *Fleet) Health() error {
	if t := f.trouble.Load(); t.wrong() {
		return fmt.Errorf("nothing is sent to NATS since %s: %w", t.since.UTC().Format(time.RFC3339), t.err)
	}
	return nil
}

// Close ends the connection, within two seconds.
func (f *Fleet) Close() {
	f.closing.Store(true)
	f.known()
	f.loseSession()
	if !f.started {
		return
	}
	f.loop.Close(closeWithin)
	closed := make(chan struct{})
	go func() { // it writes what is buffered, for which a hung server lets it wait
		defer close(closed)
		defer crash.Log(f.log, "closing the connection to NATS")
		if <-f.dialled; f.nc != nil {
			f.nc.Close()
		}
	}()
	select {
	case <-closed:
	case <-time.After(closeWithin):
	}
}
