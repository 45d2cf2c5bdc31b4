package journal

import (
	"fmt"
)

// Outcome is what became of an accepted message. The zero value is Pending.
type Outcome uint8

// Outcomes.
const (
	Pending   Outcome = iota
	Delivered         // the backend has it
	Dead              // it is a dead letter, and durably so
	Settled           // one or the other: of the message no more than its id is left
)

func (o Outcome) String() string {
	switch o {
	case Pending:
		return "pending"
	case Delivered:
		return "delivered"
	case Dead:
		return "dead"
	case Settled:
		return "settled"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Done says what became of the message at pos, once for each. It returns at once: the outcome is written within some
// 20 ms by the journal's goroutine. One that a crash loses makes the message pending again.
func (j *Journal) Done(pos Position, o Outcome) {
	switch o {
	case Delivered:
		j.delivered.Add(1)
	case Dead:
		j.dead.Add(1)
	default:
		return
	}
	j.outcomesMu.Lock()
	j.outcomes = append(j.outcomes, settled{pos: pos, kind: o})
	first := len(j.outcomes) == 1
	j.outcomesMu.Unlock()
	if first {
		j.poke()
	}
}
