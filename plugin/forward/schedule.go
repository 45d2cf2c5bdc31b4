package forward

import (
	"container/heap"
	"sync"
	"time"
)

// schedule decides which lane is served next. Forwarder.mu protects it.
//
// Workers without a lane wait for idle. It is signalled when a lane becomes ready, and by the alarm, the one timer of
// a Forwarder, when a back-off ends; a worker that takes a lane and leaves another behind signals the next worker.
type schedule struct {
	lanes    map[string]*lane // every lane, by device
	ready    lanes
	waiting  waiting
	inFlight int
	breaker  breaker

	// Lanes that failed before get at most retryLimit workers, and every other turn: when some devices' requests hang
	// until they time out, the others' go on.
	retrying   int
	retryLimit int
	retryTurn  bool

	idle    *sync.Cond
	idlers  int // workers waiting for idle
	alarm   *time.Timer
	alarmAt time.Time // zero: not set
	ended   bool
}

func (s *schedule) init(mu *sync.Mutex, concurrency int) {
	s.lanes = make(map[string]*lane)
	s.breaker.epoch = 1
	s.idle = sync.NewCond(mu)
	s.retryLimit = max(1, concurrency/2)
	s.alarm = time.AfterFunc(time.Hour, func() { // in a goroutine of its own; nothing in it can panic
		mu.Lock()
		defer mu.Unlock()
		s.alarmAt = time.Time{}
		s.idle.Signal()
	})
	s.alarm.Stop()
}

// stop makes next return nil to every worker.
func (s *schedule) stop() {
	s.ended = true
	s.alarm.Stop()
	s.idle.Broadcast()
}

// add queues e in its device's lane.
func (s *schedule) add(e *entry) {
	l := s.lanes[e.DeviceID]
	if l != nil {
		l.take(e)
		return
	}
	l = &lane{device: e.DeviceID}
	l.take(e)
	s.lanes[l.device] = l
	s.ready.push(l)
	// While the backend is down, the alarm or the end of the probe wakes a worker in time.
	if s.idlers > 0 && (!s.breaker.open || s.breaker.admits(time.Now())) {
		s.idle.Signal()
	}
}

// next waits for a lane to serve; nil means that the worker is to end.
func (s *schedule) next() *lane {
	for !s.ended {
		now := time.Now()
		if l := s.pick(now); l != nil {
			if s.idlers > 0 && !s.breaker.open && (!s.ready.empty() || s.retryDue(now)) {
				s.idle.Signal()
			}
			return l
		}
		s.setAlarm(now)
		s.idlers++
		s.idle.Wait()
		s.idlers--
	}
	return nil
}

func (s *schedule) retryDue(now time.Time) bool {
	return s.waiting.due(now) && (s.retrying < s.retryLimit || s.breaker.open)
}

// pick takes a lane for a worker, nil if none may be served now.
func (s *schedule) pick(now time.Time) *lane {
	if !s.breaker.admits(now) {
		return nil
	}
	var l *lane
	switch due := s.retryDue(now); {
	case due && (s.retryTurn && !s.breaker.open || s.ready.empty()): // who has not failed makes the better probe
		l = heap.Pop(&s.waiting).(*lane)
		s.retryTurn = false
	case !s.ready.empty():
		l = s.ready.pop()
		s.retryTurn = true
	default:
		return nil
	}
	s.inFlight++
	if l.retrying = l.failures > 0; l.retrying {
		s.retrying++
	}
	if s.breaker.open {
		l.probe, s.breaker.probing = true, true
	}
	return l
}

// landed takes back a lane whose attempt is over; what becomes of it is for the caller to decide.
func (s *schedule) landed(l *lane) {
	s.inFlight--
	if l.retrying {
		l.retrying = false
		s.retrying--
	}
	if l.probe {
		l.probe, s.breaker.probing = false, false
	}
}

// wait puts a lane aside for d.
func (s *schedule) wait(l *lane, now time.Time, d time.Duration) {
	l.until = now.Add(d)
	heap.Push(&s.waiting, l)
}

// proceed takes the first message off a lane and puts the lane where it then belongs.
func (s *schedule) proceed(l *lane) {
	l.panics = 0
	l.count--
	l.bytes -= l.head().size()
	if l.pop(); l.empty() {
		delete(s.lanes, l.device)
	} else {
		s.ready.push(l)
	}
}

// setAlarm makes the alarm ring at the next moment at which pick may find something it does not find now. What is due
// already needs no alarm: the caller is a worker about to pick.
func (s *schedule) setAlarm(now time.Time) {
	var at time.Time
	switch b := &s.breaker; {
	case b.probing:
		return
	case b.open && b.probeAt.After(now):
		at = b.probeAt
	case len(s.waiting) > 0 && s.waiting[0].until.After(now):
		at = s.waiting[0].until
	default:
		return
	}
	if s.alarmAt.IsZero() || at.Before(s.alarmAt) {
		s.alarmAt = at
		s.alarm.Reset(at.Sub(now))
	}
}

const (
	// breakerThreshold is how many different lanes must fail, with no success in between, for the backend as a whole
	// to count as down. Fewer may be those devices' own trouble, and their back-off alone is mild enough.
	breakerThreshold = 8
	// maxProbeInterval bounds how long a recovered backend goes unnoticed. One request in that time is no burden.
	maxProbeInterval = 5 * time.Second
)

// breaker is a circuit breaker for the whole backend: while it is open, one request at a time, with a back-off in
// between, finds out whether the backend answers again.
type breaker struct {
	open    bool
	epoch   uint64    // 1 and one more with each answer; see lane.epoch
	failed  int       // lanes that failed in this epoch
	probes  int       // that failed since it opened
	probing bool      // a probe is in flight
	probeAt time.Time // when the next one may go
}

func (b *breaker) admits(now time.Time) bool {
	return !b.open || !b.probing && !b.probeAt.After(now)
}

// answered notes that the backend took or refused a message; it reports whether that closed the breaker.
func (b *breaker) answered() (closed bool) {
	closed = b.open
	b.epoch++
	b.open, b.failed, b.probes = false, 0, 0
	return closed
}

// failure notes a failed attempt, a probe or not, of l; it reports whether that opened the breaker.
func (b *breaker) failure(l *lane, probe bool, now time.Time) (opened bool) {
	if l.epoch != b.epoch {
		l.epoch = b.epoch
		b.failed++
	}
	switch {
	case b.open && probe:
		b.probes++
	case !b.open && b.failed >= breakerThreshold:
		b.open, opened = true, true
	default:
		return false
	}
	b.probeAt = now.Add(backoff(b.probes+1, maxProbeInterval))
	return opened
}
