package downlink

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/crash"
)

// How often the Waker repeats a signal that has had no effect yet. A signal that arrives just before the broker's
// thread goes to sleep is lost; the thread sleeps 100 ms at most.
const (
	repeatEvery  = time.Millisecond
	repeatAtMost = 150
)

// A Waker ends the sleep of the broker's thread by a signal, and repeats the signal until the thread has been seen
// awake: the sending of one signal can fall into the moment before the sleep begins.
type Waker struct {
	signal func()
	ticks  atomic.Uint64 // how often the broker's thread has run
	until  atomic.Uint64 // the tick that the latest request waits for
	rounds uint64
	log    *slog.Logger
	asked  chan struct{}
	stop   chan struct{}
	done   sync.WaitGroup
	once   sync.Once
}

// NewWaker starts a Waker. signal is called from any goroutine and must return at once. rounds is how many
// ticks it takes until what the broker was given to publish is on its way: 1 where the broker sends before it sleeps, 2
// where it sleeps first (Mosquitto 2.1).
func NewWaker(signal func(), rounds uint64, log *slog.Logger) *Waker {
	w := &Waker{signal: signal, rounds: rounds, log: log, asked: make(chan struct{}, 1), stop: make(chan struct{})}
	w.done.Go(w.run)
	return w
}

// Wake has the thread run soon. Safe for concurrent use; it never blocks.
func (w *Waker) Wake() {
	w.until.Store(w.ticks.Load() + w.rounds)
	w.signal()
	select {
	case w.asked <- struct{}{}:
	default:
	}
}

// Tick notes that the thread has run. Called on the broker's thread.
func (w *Waker) Tick() { w.ticks.Add(1) }

// Stop ends the Waker; no signal is sent after it has returned.
func (w *Waker) Stop() {
	w.once.Do(func() { close(w.stop) })
	w.done.Wait()
}

func (w *Waker) run() {
	defer crash.Log(w.log, "waker") // without repeated signals a message waits 100 ms at the worst
	timer := time.NewTimer(repeatEvery)
	defer timer.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-w.asked:
		}
		for range repeatAtMost {
			timer.Reset(repeatEvery)
			select {
			case <-w.stop:
				return
			case <-timer.C:
			}
			if w.ticks.Load() >= w.until.Load() {
				break
			}
			w.signal()
		}
	}
}
