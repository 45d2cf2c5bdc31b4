package forward

import (
	"sync"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/crash"
)

// maxSpareArrivals bounds the capacity that an intake keeps for later.
const maxSpareArrivals = 1 << 15

// arrival is a message that Enqueue took and no worker has seen.
type arrival struct {
	device string
	pos    uint64
	bytes  uint32
}

// intake is where Enqueue leaves messages: who calls it shares no lock with the workers but this one, which is held for
// an append or a swap, and no worker is woken.
type intake struct {
	n atomic.Int64 // len(arrivals), to be read without the lock

	mu       sync.Mutex // guards arrivals
	arrivals []arrival

	spare []arrival // swapped in by take; Forwarder.mu protects it
}

func (in *intake) put(a arrival) {
	in.mu.Lock()
	in.arrivals = append(in.arrivals, a)
	in.n.Store(int64(len(in.arrivals)))
	in.mu.Unlock()
}

// take hands every arrival to each, oldest first. The caller holds Forwarder.mu.
func (in *intake) take(each func(*arrival)) (n int) {
	if in.n.Load() == 0 {
		return 0
	}
	in.mu.Lock()
	taken := in.arrivals
	in.arrivals = in.spare
	in.n.Store(0)
	in.mu.Unlock()
	for i := range taken {
		each(&taken[i])
	}
	n = len(taken)
	if in.spare = nil; cap(taken) <= maxSpareArrivals {
		clear(taken)
		in.spare = taken[:0]
	}
	return n
}

// dispatcher takes what has arrived when Dispatch says so, and wakes a worker for it.
func (f *Forwarder) dispatcher() {
	defer f.leave()
	for {
		select {
		case <-f.wake:
			f.dispatch()
		case <-f.quit:
			return
		}
	}
}

func (f *Forwarder) dispatch() {
	defer crash.Log(f.log, "dispatcher")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.arrive()
	// While the backend is down, the alarm or the end of the probe wakes a worker in time.
	if !f.halted && f.breaker.admits(time.Now()) {
		f.idle.Signal()
	}
}

// arrive moves what has arrived into the lanes, with f.mu held.
func (f *Forwarder) arrive() {
	n := f.intake.take(func(a *arrival) { f.schedule.add(a.device, a.pos, a.bytes) })
	f.accepted += uint64(n)
	f.pending += n
}

// Dispatch has what was enqueued since the last call looked at, if a worker is idle; busy ones look by themselves. It is
// meant to be called once for many messages, by the caller of Enqueue, and returns immediately.
func (f *Forwarder) Dispatch() {
	// A worker counts itself idle before it looks at the intake for the last time, so either it sees what is in there
	// or it is seen here. Many are taken even if no worker is idle, or the caller of Enqueue would copy more and more of them.
	n := f.intake.n.Load()
	if n == 0 || n < maxSpareArrivals/2 && f.idlers.Load() == 0 {
		return
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
