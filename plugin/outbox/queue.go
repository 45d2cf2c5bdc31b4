package outbox

import (
	"log/slog"

	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
)

// A queue is the journal with the forwarder behind it.
type queue struct {
	journal   *journal.Journal
	forwarder *forward.Forwarder
	log       *slog.Logger
	ticks     bool // Tick is called; the broker's thread's
}

// Admit returns an error where there is no room for a message of the device: forward.ErrFull, ErrShare or ErrClosed. size is
// the payload's; the journal looks at it in Append.
func (q *queue) Admit(device string, _ int) error { return q.forwarder.Admit(device) }

// Append appends a message to the journal, and hands it to the forwarder, if Admit has found room for it. The error is the
// journal's, and the message is nowhere then. The device's id is kept, the rest is copied. It does not allocate.
func (q *queue) Append(a *journal.Accepted) error {
	pos, err := q.journal.Append(a)
	if err != nil {
		return err
	}
	// From here on the message is accepted, whatever happens: the next start finds it in the journal.
	defer crash.Log(q.log, "handing a message to the forwarder")
	q.forwarder.Enqueue(a.Device, uint64(pos), a.Size())
	if !q.ticks {
		q.forwarder.Dispatch()
	}
	return nil
}

// Tick has the forwarder send what was appended since the last call. A broker that never ticks has each message sent at
// once.
func (q *queue) Tick() {
	q.ticks = true
	q.forwarder.Dispatch()
}
