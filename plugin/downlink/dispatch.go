package downlink

import (
	"log/slog"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/mqtt"
)

// A Broker publishes what it is given for those who subscribe to its topic. Broker's thread only.
type Broker interface{ Publish(mqtt.Message) error }

// A Dispatcher is the way to the broker's thread: it holds the queues, wakes the thread, and gives the broker what waits
// there. Every queue has bounds of its own, so that no number of commands keeps a response from its device.
type Dispatcher struct {
	broker Broker
	wake   func()
	log    *slog.Logger
	// Both are set before the first Drain.
	queues  []drained
	counted []*Queue // those of responses and commands

	published atomic.Uint64 // responses and commands
	refused   atomic.Uint64
}

// drained is a queue, and what is done with a publish that comes out of it.
type drained struct {
	*Queue
	send func(Publish)
}

// NewDispatcher returns a Dispatcher without a queue. wake is called from any goroutine when something waits, must return at
// once, and ends the sleep of the broker's thread. log takes a line for each publish that the broker refuses.
func NewDispatcher(broker Broker, wake func(), log *slog.Logger) *Dispatcher {
	return &Dispatcher{broker: broker, wake: wake, log: log}
}

// queue adds a queue of at most maxCount publishes of at most maxBytes altogether.
func (d *Dispatcher) queue(maxCount, maxBytes int, send func(Publish)) *Queue {
	q := NewQueue(maxCount, maxBytes)
	d.queues = append(d.queues, drained{q, send})
	return q
}

// messages adds a queue of responses or commands.
func (d *Dispatcher) messages(maxCount, maxBytes int) *Queue {
	q := d.queue(maxCount, maxBytes, d.give)
	d.counted = append(d.counted, q)
	return q
}

// push leaves p in a queue for the broker's thread. Any goroutine; it does not wait. The error is ErrFull.
func (d *Dispatcher) push(q *Queue, p Publish) error {
	first, err := q.Push(p)
	if first {
		d.wake()
	}
	return err
}

// Drain gives the broker everything that waits, queue by queue in the order in which they were added. Broker's thread.
func (d *Dispatcher) Drain() {
	for _, q := range d.queues {
		q.Drain(q.send)
	}
}

// give gives a response or a command to the broker, unless its time is up or it is not good any more. Broker's thread.
func (d *Dispatcher) give(p Publish) {
	given := d.tryGive(&p)
	if p.Done != nil {
		p.Done(given)
	}
}

func (d *Dispatcher) tryGive(p *Publish) bool {
	if !p.Expires.IsZero() {
		left := remaining(p.Expires, time.Now())
		if left <= 0 {
			return false
		}
		p.Expiry = uint32(left)
	}
	if p.Good != nil && !p.Good() {
		return false
	}
	if err := d.broker.Publish(p.Message); err != nil {
		d.refused.Add(1)
		d.log.Warn("the broker did not accept a message for a device", "topic", p.Topic, "error", err)
		return false
	}
	d.published.Add(1)
	return true
}

// remaining is for how many seconds the broker may keep a message so that it delivers it before expires, which is in whole
// seconds: 0 or less, not at all. The broker counts whole seconds of its clock, the last one included, and takes an
// interval of 0 for no limit.
func remaining(expires, now time.Time) int64 { return expires.Unix() - now.Unix() - 1 }

// Refused counts one more publish that the broker did not take, which was not given by way of d. Any goroutine.
func (d *Dispatcher) Refused() { d.refused.Add(1) }
