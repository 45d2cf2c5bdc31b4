package forward

import (
	"time"
)

// entry is a queued message. It is never reused, so a callback may keep a pointer to its Message.
type entry struct {
	Message
	next *entry
}

// lane is what is to be sent for one device, in order. The rest of the package knows of the messages only that there
// is a first one (head), that it is done (pop), and whether there are more (empty).
//
// A lane in flight belongs to its worker; else it is protected by Forwarder.mu.
type lane struct {
	device      string
	first, last *entry
	count       int   // of entries; Forwarder.mu protects it at all times
	bytes       int64 // of entries; likewise

	failures int       // attempts that failed since the backend last took or refused a message of this lane
	panics   int       // attempts that panicked, of the first message
	until    time.Time // end of the back-off, while waiting
	epoch    uint64    // of the breaker when this lane last failed; 0: never
	retrying bool      // in flight after a failure
	probe    bool      // in flight to find out whether the backend is back
	next     *lane     // in lanes
}

// take appends e and counts it.
func (l *lane) take(e *entry) {
	l.push(e)
	l.count++
	l.bytes += e.size()
}

func (l *lane) push(e *entry) {
	if l.last == nil {
		l.first = e
	} else {
		l.last.next = e
	}
	l.last = e
}

func (l *lane) head() *Message { return &l.first.Message }

func (l *lane) pop() {
	l.first = l.first.next
	if l.first == nil {
		l.last = nil
	}
}

func (l *lane) empty() bool { return l.first == nil }

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

// waiting is a heap.Interface of lanes in back-off, the first to be due at the root.
type waiting []*lane

func (w waiting) Len() int           { return len(w) }
func (w waiting) Less(i, j int) bool { return w[i].until.Before(w[j].until) }
func (w waiting) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }
func (w *waiting) Push(x any)        { *w = append(*w, x.(*lane)) }
func (w *waiting) Pop() any {
	last := len(*w) - 1
	l := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	return l
}

// due reports whether the first lane's back-off has ended.
func (w waiting) due(now time.Time) bool { return len(w) > 0 && !w[0].until.After(now) }
