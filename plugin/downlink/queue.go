package downlink

import (
	"errors"
	"sync"
	"sync/atomic"
)

// ErrFull says that a message was not taken because the queue holds as much as it may.
var ErrFull = errors.New("downlink: the queue to the broker is full")

// A Queue holds publishes until the broker's thread drains it, oldest first. Its mutex guards a few assignments and is
// never held over I/O or a call into the broker. Safe for concurrent use.
type Queue struct {
	maxCount int
	maxBytes int

	count atomic.Int64 // of waiting, so that draining an empty queue costs one load

	mu      sync.Mutex // guards what follows
	waiting []Publish
	spare   []Publish // the slice drained last, to be filled next
	bytes   int
}

// NewQueue returns a queue that holds at most maxCount publishes with payloads of at most maxBytes altogether.
func NewQueue(maxCount, maxBytes int) *Queue {
	return &Queue{maxCount: maxCount, maxBytes: maxBytes}
}

// Push appends p, whose payload now belongs to the queue. first reports whether the queue was empty before, which is
// when the broker's thread needs to be woken. The error is ErrFull.
func (q *Queue) Push(p Publish) (first bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= q.maxCount || q.bytes+p.size() > q.maxBytes {
		return false, ErrFull
	}
	q.waiting = append(q.waiting, p)
	q.bytes += p.size()
	return q.count.Add(1) == 1, nil
}

// Drain hands every waiting publish to send, oldest first, and returns how many there were. One goroutine at a time may
// call it; the queue is not locked while send runs.
func (q *Queue) Drain(send func(Publish)) int {
	if q.count.Load() == 0 {
		return 0
	}
	q.mu.Lock()
	batch := q.waiting
	q.waiting, q.spare, q.bytes = q.spare[:0], nil, 0
	q.count.Store(0)
	q.mu.Unlock()

	for i := range batch {
		send(batch[i])
	}
	clear(batch)
	q.mu.Lock()
	q.spare = batch[:0]
	q.mu.Unlock()
	return len(batch)
}

// Len returns how many publishes wait.
func (q *Queue) Len() int { return int(q.count.Load()) }
