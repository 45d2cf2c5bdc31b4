// Package loop runs a goroutine that does what is due, again and again: when it is woken, after a time that it names
// itself, and again at its end.
package loop

import (
	"log/slog"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/crash"
)

// afterPanic is the time between a round that has panicked and the next one.
const afterPanic = time.Second

// A Loop is such a goroutine. Its methods are safe for concurrent use.
type Loop struct {
	log   *slog.Logger
	name  string
	round func(stopping bool) time.Duration

	wake chan struct{}
	stop chan struct{}
	done chan struct{}
	once sync.Once
}

// New returns a loop that does not run yet, so that its round may use it. name is what the log calls it.
//
// round does what is due and returns the time after which there will be something to do again, unless Wake comes first; 0:
// not until then. stopping says that it is called for the last time. A panic in it is logged.
func New(log *slog.Logger, name string, round func(stopping bool) time.Duration) *Loop {
	return &Loop{
		log: log, name: name, round: round,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
}

// Start starts the goroutine, with a round at once.
func (l *Loop) Start() { go l.run() }

// Wake has a round begin soon, or another one after that which is under way. It returns at once.
func (l *Loop) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Stopping is closed when Close has been called.
func (l *Loop) Stopping() <-chan struct{} { return l.stop }

// Close has the last round begin, and waits until it has ended, or within is over; 0: as long as it takes. It reports
// whether it has ended. It may be called more than once, but not before Start.
func (l *Loop) Close(within time.Duration) (ended bool) {
	l.once.Do(func() { close(l.stop) })
	var limit <-chan time.Time
	if within > 0 {
		timer := time.NewTimer(within)
		defer timer.Stop()
		limit = timer.C
	}
	select {
	case <-l.done:
		return true
	case <-limit:
		return false
	}
}

func (l *Loop) run() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.stop:
			l.guarded(true)
			return
		case <-l.wake:
		case <-timer.C:
		}
		timer.Stop()
		if next := l.guarded(false); next > 0 {
			timer.Reset(next)
		}
	}
}

// guarded is a round that does not panic.
func (l *Loop) guarded(stopping bool) (next time.Duration) {
	defer crash.Then(l.log, l.name, func() { next = afterPanic })
	return l.round(stopping)
}
