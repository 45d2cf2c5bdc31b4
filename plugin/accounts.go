package plugin

import (
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
)

// Accounts is what became of every message that was ever accepted: Accepted = Delivered + Dead + Pending. A dead letter
// that is requeued is accepted once more.
type Accounts struct{ Accepted, Delivered, Dead, Pending uint64 }

// attrs returns the four numbers for a line in the log.
func (a Accounts) attrs() []any {
	return []any{"accepted", a.Accepted, "delivered", a.Delivered, "dead", a.Dead, "pending", a.Pending}
}

// A Stats is the state of delivery.
type Stats struct {
	Accounts Accounts // over restarts, all of one moment
	Forward  forward.Stats
	Journal  journal.Stats
}

// Stats returns the state of delivery. Safe for concurrent use between Start and Stop.
func (g *Gateway) Stats() Stats {
	j := g.journal.Stats() // the forwarder does not know of devices' answers to commands
	return Stats{
		Accounts: Accounts{j.Accepted, j.Delivered, j.Dead, j.Pending},
		Forward:  g.forwarder.Stats(),
		Journal:  j,
	}
}
