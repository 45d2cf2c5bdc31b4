package downlink

import (
	"errors"

	"mosquitto-bouncer/plugin/mailbox"
)

// ErrFull says that a message was not taken because the queue holds as much as it may.
var ErrFull = errors.New("downlink: the queue to the broker is full")

// A Queue holds publishes until the broker's thread drains it, oldest first. Safe for concurrent use.
type Queue struct {
	box *mailbox.Box[Publish]
}

// NewQueue returns a queue that holds at most maxCount publishes with payloads of at most maxBytes altogether.
func NewQueue(maxCount, maxBytes int) *Queue {
	return &Queue{box: mailbox.NewSized(maxCount, maxBytes, Publish.size)}
}

// Push appends p, whose payload now belongs to the queue. first reports whether the queue was empty before, which is
// when the broker's thread needs to be woken. The error is ErrFull.
func (q *Queue) Push(p Publish) (first bool, err error) {
	first, ok := q.box.Put(p)
	if !ok {
		return false, ErrFull
	}
	return first, nil
}

// Drain hands every waiting publish to send, oldest first, and returns how many there were. One goroutine at a time may
// call it; the queue is not locked while send runs.
func (q *Queue) Drain(send func(Publish)) int { return q.box.Drain(send) }

// Len returns how many publishes wait.
func (q *Queue) Len() int { return q.box.Len() }
