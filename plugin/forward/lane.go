package forward

import (
	"math"
	"slices"
	"time"
)

// Chunks double in size from minChunk to maxChunk positions: a short queue wastes little, a long one is never copied.
const (
	minChunk = 4
	maxChunk = 1024
	// keptChunk is the largest that outlives its positions.
	keptChunk = 64
)

// fifo is a queue of positions: 8 bytes each, up to twice that for a short one.
type fifo struct {
	first, last *chunk
	read        int // positions of first that were taken
}

type chunk struct {
	next      *chunk
	positions []uint64
}

func (q *fifo) push(pos uint64) {
	c := q.last
	switch {
	case c == nil:
		c = &chunk{positions: make([]uint64, 0, minChunk)}
		q.first, q.last = c, c
	case len(c.positions) == cap(c.positions):
		c.next = &chunk{positions: make([]uint64, 0, min(2*cap(c.positions), maxChunk))}
		c = c.next
		q.last = c
	}
	c.positions = append(c.positions, pos)
}

// pop takes the first position of a queue that has one.
func (q *fifo) pop() uint64 {
	c := q.first
	pos := c.positions[q.read]
	if q.read++; q.read == len(c.positions) {
		q.read = 0
		switch {
		case c.next != nil:
			q.first = c.next
		case cap(c.positions) <= keptChunk:
			c.positions = c.positions[:0]
		default:
			q.first, q.last = nil, nil
		}
	}
	return pos
}

// lane holds what is to be sent for one device, in order, apart from what is in a parcel already. Forwarder.mu protects
// it. There may be as many lanes as devices: it is 64 bytes.
type lane struct {
	device string
	next   *lane // in lanes
	due    int64 // when it need not wait for others any more, while ready; see schedule.linger
	head   uint64
	rest   *fifo // the positions behind head; nil if there never were any
	n      uint32
	units  uint32 // of laneUnit bytes, which the messages take in the Store
	epoch  uint32 // of the breaker when this lane last failed; 0: never
	// failures counts the requests that failed since the backend last took or refused a message of this lane.
	failures uint16
	state    laneState
	crowding bool // it has taken its share; see schedule.weigh
}

// laneUnit is what the bytes of a lane are counted in.
const laneUnit = 64

type laneState uint8

const (
	parked laneState = iota // just made, or its device is suspended
	ready                   // in schedule.ready
	taken                   // some of its messages are in a parcel
)

func (l *lane) push(pos uint64, bytes uint32) {
	if l.n == 0 {
		l.head = pos
	} else {
		if l.rest == nil {
			l.rest = new(fifo)
		}
		l.rest.push(pos)
	}
	l.n++
	units := bytes/laneUnit + 1
	if l.units += units; l.units < units {
		l.units = math.MaxUint32
	}
}

// pop takes the first message off. What that takes in the Store is not known any more: each counts the same.
func (l *lane) pop() uint64 {
	pos := l.head
	l.units -= l.units / l.n
	if l.n--; l.n > 0 {
		l.head = l.rest.pop()
	}
	return pos
}

// lanes is a FIFO of lanes, each in at most one.
type lanes struct{ first, last *lane }

func (q *lanes) push(l *lane) {
	if q.last == nil {
		q.first = l
	} else {
		q.last.next = l
	}
	q.last = l
}

func (q *lanes) pop() *lane {
	l := q.first
	q.first, l.next = l.next, nil
	if q.first == nil {
		q.last = nil
	}
	return l
}

func (q *lanes) empty() bool { return q.first == nil }

// parcel is what goes to the backend together: one message, or in batch mode the first messages of some lanes, which
// stay taken until they are settled. A parcel in flight belongs to its worker, which changes positions and parts with
// only Forwarder.mu held; else Forwarder.mu protects it.
type parcel struct {
	positions []uint64 // not settled yet, in the order of sending
	parts     []part   // whose they are
	spans     []span   // the requests they go in; only the first is ever in flight

	before, after *parcel // in schedule.parcels

	// letter is set when the backend has refused the first message and the Store has not taken the dead letter yet.
	letter   *DeadLetter
	letterOf string    // the message's id
	holds    int       // failures of the Store, of the first message
	doubts   doubts    // of the first request
	also     *parcel   // another one of the same device that is suspended or blocked as well
	until    time.Time // end of the back-off, while waiting
	retrying bool      // in flight after a failure
	probe    bool      // in flight to find out whether the backend is back
}

// part is the next n messages of a parcel, all of one lane.
type part struct {
	lane *lane
	n    int
}

// span is the next n messages of a parcel, all for one request.
type span struct {
	n          int
	attempts   int // requests that each of the messages was in
	panics     int // attempts that panicked
	unreadable int // requests whose answer could not be read
}

func (p *parcel) device() string { return p.parts[0].lane.device }

// cut makes the first request one of n messages, and another of the rest.
func (p *parcel) cut(n int) {
	first := p.spans[0]
	first.panics = 0
	rest := first
	first.n, rest.n = n, rest.n-n
	p.spans[0] = first
	p.spans = slices.Insert(p.spans, 1, rest)
}

// failing reports whether one of its lanes failed and has not recovered.
func (p *parcel) failing() bool {
	return slices.ContainsFunc(p.parts, func(part part) bool { return part.lane.failures > 0 })
}

// waiting is a heap.Interface of parcels in back-off, the first to be due at the root.
type waiting []*parcel

func (w waiting) Len() int           { return len(w) }
func (w waiting) Less(i, j int) bool { return w[i].until.Before(w[j].until) }
func (w waiting) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }
func (w *waiting) Push(x any)        { *w = append(*w, x.(*parcel)) }
func (w *waiting) Pop() any {
	last := len(*w) - 1
	p := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	return p
}

// due reports whether the first parcel's back-off has ended.
func (w waiting) due(now time.Time) bool { return len(w) > 0 && !w[0].until.After(now) }
