package metrics

import (
	"sync/atomic"
	"time"
)

// callbackBounds are the upper bounds of a Timer's buckets.
var callbackBounds = [...]time.Duration{
	time.Microsecond, 2 * time.Microsecond, 5 * time.Microsecond,
	10 * time.Microsecond, 20 * time.Microsecond, 50 * time.Microsecond,
	100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second,
}

// sampled is of how many calls one is timed: reading the clock twice costs much compared with a callback of two microseconds.
const sampled = 16

// A Timer measures one call of a callback in 16. The zero value is ready. Begin and End are for one thread, Histogram for
// any.
type Timer struct {
	calls  uint32
	counts [len(callbackBounds) + 1]atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

// Begin is called first; the result is End's.
func (t *Timer) Begin() time.Time {
	if t.calls++; t.calls%sampled != 0 {
		return time.Time{}
	}
	return time.Now()
}

// End is called last.
func (t *Timer) End(begin time.Time) {
	if begin.IsZero() {
		return
	}
	d := time.Since(begin)
	i := 0
	for i < len(callbackBounds) && d > callbackBounds[i] {
		i++
	}
	t.counts[i].Add(1)
	t.sum.Add(int64(d))
}

// Histogram returns what was measured.
func (t *Timer) Histogram() Histogram {
	h := Histogram{Counts: make([]uint64, len(t.counts)), Sum: time.Duration(t.sum.Load()).Seconds()}
	for _, b := range callbackBounds {
		h.Bounds = append(h.Bounds, b.Seconds())
	}
	for i := range t.counts {
		h.Counts[i] = t.counts[i].Load()
	}
	return h
}
