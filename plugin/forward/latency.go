package forward

import "time"

// latencyBounds are the upper bounds of a Histogram's buckets.
var latencyBounds = [...]time.Duration{
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second,
	time.Minute, 10 * time.Minute, time.Hour, 24 * time.Hour,
}

// Histogram counts durations by their size.
type Histogram struct {
	Counts [len(latencyBounds) + 1]uint64 // each of only its own bucket; the last is of those above every bound
	Sum    float64                        // seconds
}

// observe counts d; a negative one, by a clock that was set back, as 0.
func (h *Histogram) observe(d time.Duration) {
	d = max(0, d)
	i := 0
	for i < len(latencyBounds) && d > latencyBounds[i] {
		i++
	}
	h.Counts[i]++
	h.Sum += d.Seconds()
}
