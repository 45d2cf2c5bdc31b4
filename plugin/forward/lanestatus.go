package forward

import (
	"cmp"
	"maps"
	"slices"
)

// A LaneStatus describes the lane of one device: what waits in it, with what is in flight.
type LaneStatus struct {
	Device   string
	Messages int
	// Oldest is the position of the message that was accepted first, if there are any.
	Oldest uint64
	// Failures counts the requests with messages of the device that failed since the backend last took or refused one.
	Failures int
	// Blocked says that nothing of the device is sent because there is no room for a dead letter of it.
	Blocked bool
	// Suspended says that nothing is sent before Resume, of the device or of everything.
	Suspended bool
}

// Lanes returns what waits of some devices, in their order. It looks only at their lanes, and where the first message of
// one is under way at what else is.
func (f *Forwarder) Lanes(devices ...string) []LaneStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.arriveNow()
	lanes := make([]LaneStatus, len(devices))
	var underway map[*lane]int // at which place
	for i, device := range devices {
		l := f.lanes[device]
		switch {
		case l == nil:
			_, suspended := f.suspended[device]
			lanes[i] = LaneStatus{Device: device, Suspended: suspended || f.halted}
		case l.state == taken || f.unordered:
			if underway == nil {
				underway = make(map[*lane]int)
			}
			underway[l] = i
			if l.n > 0 {
				lanes[i] = f.describe(l, l.head, 0)
			}
		default:
			lanes[i] = f.describe(l, l.head, 0)
		}
	}
	if len(underway) == 0 {
		return lanes
	}
	for first, part := range f.underway {
		if i, asked := underway[part.lane]; asked {
			lanes[i] = f.add(lanes[i], part.lane, first, part.n)
		}
	}
	return lanes
}

// Slowest returns the n devices whose oldest message was accepted first, the very first at the front. It looks at every
// lane, with the workers' lock held: some 0.1 s for a million lanes, so it is to be called once a second at most.
func (f *Forwarder) Slowest(n int) (slowest []LaneStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.arriveNow()
	consider := func(l *lane, first uint64, underway int) {
		if len(slowest) == n && first >= slowest[n-1].Oldest {
			return
		}
		i, _ := slices.BinarySearchFunc(slowest, first, func(q LaneStatus, first uint64) int { return cmp.Compare(q.Oldest, first) })
		slowest = slices.Insert(slowest, i, f.describe(l, first, underway))
		slowest = slowest[:min(n, len(slowest))]
	}
	if f.unordered {
		return f.slowestUnordered(n)
	}
	for _, l := range f.lanes {
		if l.state != taken {
			consider(l, l.head, 0)
		}
	}
	for first, part := range f.underway {
		consider(part.lane, first, part.n)
	}
	return slowest
}

// slowestUnordered is Slowest where several parcels of one lane may be under way. f.mu is held.
func (f *Forwarder) slowestUnordered(n int) []LaneStatus {
	lanes := make(map[*lane]LaneStatus, len(f.lanes))
	for _, l := range f.lanes {
		if l.n > 0 {
			lanes[l] = f.describe(l, l.head, 0)
		}
	}
	for first, part := range f.underway {
		lanes[part.lane] = f.add(lanes[part.lane], part.lane, first, part.n)
	}
	all := slices.SortedFunc(maps.Values(lanes), func(a, b LaneStatus) int { return cmp.Compare(a.Oldest, b.Oldest) })
	return all[:min(n, len(all))]
}

// add counts messages of a lane that are under way with what is known of it, which may be nothing. f.mu is held.
func (f *Forwarder) add(q LaneStatus, l *lane, first uint64, underway int) LaneStatus {
	if q.Device == "" || q.Messages == 0 {
		return f.describe(l, first, underway)
	}
	q.Messages += underway
	q.Oldest = min(q.Oldest, first)
	return q
}

// describe returns the status of a lane, of which so many messages are in a parcel. f.mu is held.
func (f *Forwarder) describe(l *lane, first uint64, underway int) LaneStatus {
	_, suspended := f.suspended[l.device]
	_, blocked := f.blocked[l.device]
	return LaneStatus{
		Device:    l.device,
		Messages:  int(l.n) + underway,
		Oldest:    first,
		Failures:  int(l.failures),
		Blocked:   blocked,
		Suspended: suspended || f.halted,
	}
}

// underway yields the lanes that are taken, with the position of the first message in the parcel. f.mu is held.
func (f *Forwarder) underway(yield func(first uint64, p part) bool) {
	for p := f.parcels; p != nil; p = p.after {
		at := 0
		for _, part := range p.parts {
			if !yield(p.positions[at], part) {
				return
			}
			at += part.n
		}
	}
}

// arriveNow takes what was enqueued, and wakes a worker for it. f.mu is held.
func (f *Forwarder) arriveNow() {
	if f.intake.n.Load() > 0 {
		f.arrive()
		f.idle.Signal()
	}
}
