// Package downlink carries publishes from any goroutine to the broker's thread, which alone may hand them to the
// broker, and wakes that thread so that they do not wait for its next time-out.
package downlink

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// A Publish is one message for a device.
type Publish struct {
	Topic   string
	Payload []byte
	QoS     byte // 0, 1 or 2
	Retain  bool // an empty payload then removes what is retained

	// The rest is MQTT 5's; whoever speaks 3.1.1 gets the message without it.
	Correlation []byte         // correlation data; nil: none
	User        []UserProperty // in this order
	// Expiry is the message expiry interval in seconds, which the broker keeps to for every subscriber; 0: none.
	Expiry uint32
	// Properties are more of them, in a form of the broker's side; nil: none.
	Properties []byte

	// Expires is when it may not be given to the broker any more; zero: always.
	Expires time.Time
	// Good, if not nil, is asked on the broker's thread right before it is given: false, and it is not.
	Good func() bool
	// Done, if not nil, is called on the broker's thread, once, with whether it was given to the broker.
	Done func(given bool)
}

// A UserProperty is a pair of MQTT 5's.
type UserProperty struct{ Name, Value string }

// size is what the queue counts of p.
func (p *Publish) size() int { return len(p.Payload) + len(p.Correlation) }

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
