package outbox

import (
	"time"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
)

// Accounts is what happened to every message that was ever accepted: Accepted = Delivered + Dead + Pending. A dead letter
// that is requeued is accepted again.
type Accounts struct{ Accepted, Delivered, Dead, Pending uint64 }

// Attrs returns the four numbers for a line in the log.
func (a Accounts) Attrs() []any {
	return []any{"accepted", a.Accepted, "delivered", a.Delivered, "dead", a.Dead, "pending", a.Pending}
}

// A Stats is the state of delivery.
type Stats struct {
	Accounts Accounts // over restarts, all of one moment
	Forward  forward.Stats
	Journal  journal.Stats
	Letters  deadletter.Usage // about a second old at most; zero until it is read first
}

// Stats returns the state of delivery. Any goroutine, after Close too.
func (b *Outbox) Stats() Stats {
	j := b.journal.Stats() // the forwarder does not know of devices' answers to commands
	return Stats{
		Accounts: Accounts{j.Accepted, j.Delivered, j.Dead, j.Pending},
		Forward:  b.forwarder.Stats(),
		Journal:  j,
		Letters:  b.letterRoom.last(),
	}
}

// Responses returns how many requests got which response since the start: see forward.Forwarder.
func (b *Outbox) Responses() []forward.ResponseCount { return b.forwarder.Responses() }

// Lanes returns what waits of some devices, in their order: see forward.Forwarder.
func (b *Outbox) Lanes(devices ...string) []forward.LaneStatus { return b.forwarder.Lanes(devices...) }

// Slowest returns the n devices whose oldest message was accepted first, at most once a second: see forward.Forwarder.
func (b *Outbox) Slowest(n int) []forward.LaneStatus { return b.forwarder.Slowest(n) }

// AcceptedAt reads from the journal when the oldest message of a lane was accepted; zero: there is none any more, or it
// cannot be read, which the forwarder reports when it comes to it.
func (b *Outbox) AcceptedAt(q forward.LaneStatus) time.Time {
	if q.Messages == 0 {
		return time.Time{}
	}
	r, err := b.messages.read(q.Oldest)
	defer b.messages.done(r)
	if err != nil {
		return time.Time{}
	}
	return r.AcceptedAt
}
