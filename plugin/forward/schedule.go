package forward

import (
	"container/heap"
	"maps"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// schedule decides what is sent next. Forwarder.mu protects it.
//
// Workers without a parcel wait for idle. It is signalled when there is something to send, and by the alarm, the one
// timer of a Forwarder, when only the passing of time makes it so; a worker that takes a parcel and leaves something behind signals
// the next worker.
type schedule struct {
	lanes    map[string]*lane // every lane, by device
	ready    lanes
	readyN   int // messages in ready
	waiting  waiting
	inFlight int
	breaker  breaker

	// A batch goes out with fewer messages than batch once a lane has been ready for linger, or when Close waits.
	batch    int // 1: one message a request
	linger   time.Duration
	begun    time.Time // lane.due counts from here
	draining bool

	// halted says that nothing may be sent at all. Else suspended holds the devices whose messages may not, with the
	// parcel that met Gone, if it was in this process.
	halted    bool
	suspended map[string]*parcel
	blocked   map[string]*parcel // by device, the parcels whose dead letter the Store has no room for

	// unordered says that a device's messages need not wait for each other; flights then holds what is under way of
	// each lane.
	unordered     bool
	workersAtMost int
	flights       map[*lane]*flight

	standing standing

	// Parcels that failed before get at most retryLimit workers, and every other turn: when some devices' requests
	// hang until they time out, the others' continue.
	retrying   int
	retryLimit int
	retryTurn  bool

	// One device's messages may be so many, and take so many units of laneUnit bytes. crowding holds those of which
	// there are more, for who does not hold the lock; nil: none.
	laneMessages, laneUnits uint32
	crowding                atomic.Pointer[map[string]struct{}]

	arrive  func()      // takes what was enqueued
	more    func() bool // whether there is anything to take
	idle    *sync.Cond
	idlers  atomic.Int32 // workers waiting for idle, or about to
	alarm   *time.Timer
	alarmAt time.Time // zero: not set
	ended   bool

	parcels      *parcel // every one that is not settled: the latest, with the others behind it
	spareLanes   []*lane
	spareParcels []*parcel
}

const (
	maxSpareLanes   = 1024
	maxSpareParcels = 256
)

func (s *schedule) init(mu *sync.Mutex, cfg *Config, arrive func(), more func() bool) {
	s.arrive, s.more = arrive, more
	s.laneMessages = uint32(min(max(1, cfg.MaxPending/laneShare), math.MaxUint32))
	s.laneUnits = math.MaxUint32
	if cfg.MaxBytes > 0 {
		s.laneUnits = uint32(min(max(1, cfg.MaxBytes/laneShare/laneUnit), math.MaxUint32))
	}
	s.lanes = make(map[string]*lane)
	s.batch, s.linger, s.begun = max(1, cfg.Batch), cfg.Linger, time.Now()
	s.suspended, s.blocked = make(map[string]*parcel), make(map[string]*parcel)
	s.workersAtMost = cfg.Concurrency
	if s.unordered = cfg.Unordered; s.unordered {
		s.flights = make(map[*lane]*flight)
	}
	s.standing.init(cfg.Standing)
	s.breaker.open = s.standing.refusing
	for _, device := range cfg.Suspended {
		if device == "" {
			s.halted = true
		} else {
			s.suspended[device] = nil
		}
	}
	s.breaker.epoch = 1
	s.idle = sync.NewCond(mu)
	s.retryLimit = max(1, cfg.Concurrency/2)
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

// stuck reports whether nothing that is left can be sent before something is resumed.
func (s *schedule) stuck() bool {
	return s.inFlight == 0 && (s.halted || s.ready.empty() && len(s.waiting) == 0)
}

// add queues a message in its device's lane. It wakes no worker.
func (s *schedule) add(device string, pos uint64, bytes uint32) {
	l := s.lanes[device]
	if l == nil {
		l = s.newLane(device)
		s.lanes[device] = l
	}
	l.push(pos, bytes)
	s.weigh(l)
	switch l.state {
	case ready:
		s.readyN++
	case parked, taken:
		if l.state == parked || s.unordered {
			s.advance(l)
		}
	}
}

// weigh tells Admit of a lane that has taken its share, and when there is some room in it again.
func (s *schedule) weigh(l *lane) {
	switch {
	case !l.crowding && (l.n >= s.laneMessages || l.units >= s.laneUnits):
		l.crowding = true
	case l.crowding && l.n < s.laneMessages-s.laneMessages/8 && l.units < s.laneUnits-s.laneUnits/8:
		l.crowding = false
	default:
		return
	}
	// There are few, each with so much of the queue.
	crowding := make(map[string]struct{})
	if old := s.crowding.Load(); old != nil {
		maps.Copy(crowding, *old)
	}
	if l.crowding {
		crowding[l.device] = struct{}{}
	} else {
		delete(crowding, l.device)
	}
	if len(crowding) == 0 {
		s.crowding.Store(nil)
		return
	}
	s.crowding.Store(&crowding)
}

// enlist makes a lane that has messages ready.
func (s *schedule) enlist(l *lane) {
	l.state = ready
	if s.batch > 1 {
		l.due = int64(time.Since(s.begun) + s.linger)
	}
	s.ready.push(l)
	s.readyN += int(l.n)
}

// release takes back a lane of which one parcel is settled, with order the only one there was, and forgets an empty one.
func (s *schedule) release(l *lane) (forgotten bool) {
	underway := false
	if s.unordered {
		f := s.flights[l]
		f.inFlight--
		if f.parcels--; f.parcels == 0 {
			delete(s.flights, l)
		}
		underway = f.parcels > 0
	}
	switch {
	case l.state == ready:
		return false
	case l.n > 0 && !underway:
		l.state = parked
		s.advance(l)
		return false
	case l.n > 0 || underway:
		s.advance(l)
		return false
	}
	delete(s.lanes, l.device)
	if len(s.spareLanes) < maxSpareLanes {
		*l = lane{rest: l.rest}
		s.spareLanes = append(s.spareLanes, l)
	}
	return true
}

func (s *schedule) newLane(device string) *lane {
	last := len(s.spareLanes) - 1
	if last < 0 {
		return &lane{device: device}
	}
	l := s.spareLanes[last]
	s.spareLanes = s.spareLanes[:last]
	l.device = device
	return l
}

// next waits for something to send; nil means that the worker is to end.
func (s *schedule) next() *parcel {
	for !s.ended {
		s.arrive()
		now := time.Now()
		if p := s.pick(now); p != nil {
			if s.idlers.Load() > 0 && !s.breaker.open && (s.readyDue(now) || s.retryDue(now)) {
				s.idle.Signal()
			}
			s.setAlarm(now)
			return p
		}
		s.setAlarm(now)
		s.idlers.Add(1)
		if !s.more() {
			s.idle.Wait()
		}
		s.idlers.Add(-1)
	}
	return nil
}

func (s *schedule) retryDue(now time.Time) bool {
	return s.waiting.due(now) && (s.retrying < s.retryLimit || s.breaker.open)
}

// readyDue reports whether there is a message to send, and in batch mode whether it need not wait for more.
func (s *schedule) readyDue(now time.Time) bool {
	return !s.ready.empty() &&
		(s.batch == 1 || s.readyN >= s.batch || s.draining || !s.lingersUntil().After(now))
}

// lingersUntil returns when the first ready lane need not wait any more.
func (s *schedule) lingersUntil() time.Time { return s.begun.Add(time.Duration(s.ready.first.due)) }

// pick takes a parcel for a worker, nil if none may be sent now.
func (s *schedule) pick(now time.Time) (p *parcel) {
	if s.halted || !s.breaker.admits(now) {
		return nil
	}
	due, fresh := s.retryDue(now), s.readyDue(now)
	switch {
	case due && (s.retryTurn && !s.breaker.open || !fresh): // who has not failed makes the better probe
		p = heap.Pop(&s.waiting).(*parcel)
		s.retryTurn = false
	case fresh:
		p = s.gather()
		s.retryTurn = true
	default:
		return nil
	}
	s.inFlight++
	s.launched(p)
	if p.retrying = p.failing(); p.retrying {
		s.retrying++
	}
	if s.breaker.open {
		p.probe, s.breaker.probing = true, true
	}
	return p
}

// gather makes a parcel of what the lanes that have been ready longest begin with.
func (s *schedule) gather() *parcel {
	p := s.newParcel()
	defer func() {
		for _, part := range p.parts {
			s.advance(part.lane)
		}
	}()
	for !s.ready.empty() && len(p.positions) < s.batch {
		l := s.ready.pop()
		s.readyN -= int(l.n)
		l.state = taken
		n := min(int(l.n), s.batch-len(p.positions))
		for range n {
			p.positions = append(p.positions, l.pop())
		}
		s.weigh(l)
		p.parts = append(p.parts, part{lane: l, n: n})
		if s.unordered {
			if s.flights[l] == nil {
				s.flights[l] = new(flight)
			}
			s.flights[l].parcels++
		}
	}
	p.spans = append(p.spans, span{n: len(p.positions)})
	s.list(p)
	return p
}

// list notes a parcel that is under way, until unlist.
func (s *schedule) list(p *parcel) {
	if p.after = s.parcels; p.after != nil {
		p.after.before = p
	}
	s.parcels = p
}

func (s *schedule) unlist(p *parcel) {
	if p.after != nil {
		p.after.before = p.before
	}
	if p.before != nil {
		p.before.after = p.after
	} else {
		s.parcels = p.after
	}
	p.before, p.after = nil, nil
}

func (s *schedule) newParcel() *parcel {
	last := len(s.spareParcels) - 1
	if last < 0 {
		return new(parcel)
	}
	p := s.spareParcels[last]
	s.spareParcels = s.spareParcels[:last]
	return p
}

// discard takes back a parcel that is settled to the last message.
func (s *schedule) discard(p *parcel) {
	s.unlist(p)
	if len(s.spareParcels) < maxSpareParcels {
		*p = parcel{positions: p.positions[:0], parts: p.parts[:0], spans: p.spans[:0]}
		s.spareParcels = append(s.spareParcels, p)
	}
}

// answered notes that the backend has spoken to p, which from then on is neither a probe nor a retry.
func (s *schedule) answered(p *parcel) {
	if p.retrying {
		p.retrying = false
		s.retrying--
	}
	if p.probe {
		p.probe, s.breaker.probing = false, false
	}
}

// landed takes back a parcel whose attempt is over; what happens to it is for the caller to decide.
func (s *schedule) landed(p *parcel) {
	s.answered(p)
	s.inFlight--
	s.landedOf(p)
	if s.unordered {
		for _, part := range p.parts {
			s.advance(part.lane)
		}
	}
}

// wait puts a parcel aside for d.
func (s *schedule) wait(p *parcel, now time.Time, d time.Duration) {
	p.until = now.Add(d)
	heap.Push(&s.waiting, p)
}

// suspend keeps p and what follows it from being sent: the device's messages, or if device is "" all there are. It
// reports whether this is news.
func (s *schedule) suspend(p *parcel, device string, now time.Time) bool {
	if device != "" {
		first, already := s.suspended[device]
		p.also = first
		s.suspended[device] = p
		s.hold(p.parts[0].lane)
		return !already
	}
	s.wait(p, now, 0)
	news := !s.halted
	s.halted = true
	return news
}

// resume undoes suspend; it reports whether there was something to undo.
func (s *schedule) resume(device string, now time.Time) bool {
	return s.letGo(s.suspended, device, now)
}

// setAlarm makes the alarm ring at the next moment at which pick may find something it does not find now. What is due
// already needs no alarm: a worker is about to pick, or has been signalled.
func (s *schedule) setAlarm(now time.Time) {
	var at time.Time
	sooner := func(t time.Time) {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	switch b := &s.breaker; {
	case b.probing || s.halted:
		return
	case b.open && b.probeAt.After(now):
		at = b.probeAt
	default:
		if len(s.waiting) > 0 {
			sooner(s.waiting[0].until)
		}
		if s.batch > 1 && !s.ready.empty() && s.readyN < s.batch {
			sooner(s.lingersUntil())
		}
	}
	if !at.IsZero() && (s.alarmAt.IsZero() || at.Before(s.alarmAt)) {
		s.alarmAt = at
		s.alarm.Reset(at.Sub(now))
	}
}

const (
	// breakerThreshold is how many different lanes must fail, with no success in between, for the backend as a whole
	// to count as down. Fewer may be those devices' own trouble, and their back-off is enough. A batch
	// counts as one.
	breakerThreshold = 8
	// maxProbeInterval bounds how long a recovered backend goes unnoticed. One request in that time is no burden.
	maxProbeInterval = 5 * time.Second
)

// breaker is a circuit breaker for the whole backend: while it is open, one request at a time, with a back-off in
// between, finds out whether the backend answers again.
type breaker struct {
	open    bool
	epoch   uint32    // 1 and one more with each answer; see lane.epoch
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
	b.epoch++ // once in 2^32 answers an old failure looks like one of this epoch, and does not count
	b.open, b.failed, b.probes = false, 0, 0
	return closed
}

// refused notes that the backend refuses whatever it is sent: from then on one message at a time is tried.
func (b *breaker) refused(probe bool, now time.Time) {
	if probe || !b.open {
		b.probes++
		b.probeAt = now.Add(backoff(b.probes, maxProbeInterval))
	}
	b.open = true
}

// tryNext lets the next probe go at once: the backend has spoken, though it has taken nothing.
func (b *breaker) tryNext(now time.Time) { b.probes, b.probeAt = 0, now }

// failure notes a failed attempt, a probe or not, of p; it reports whether that opened the breaker.
func (b *breaker) failure(p *parcel, probe bool, now time.Time) (opened bool) {
	if p.parts[0].lane.epoch != b.epoch {
		b.failed++
	}
	for _, part := range p.parts {
		part.lane.epoch = b.epoch
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
