package plugin

import "time"

// tasks is everything that is done on the broker's thread besides deciding, in this order. None of them waits for anything.
type tasks []task

// A task is one of them. One of its functions is set.
type task struct {
	// inTick is called only in a TICK of the broker's event loop.
	inTick func(now time.Time)
	// always is called in every TICK, and before the decision on each publish, so that it is also done for a broker that never
	// ticks.
	always func()
}

func (ts tasks) tick(now time.Time) {
	for _, t := range ts {
		if t.always != nil {
			t.always()
		} else {
			t.inTick(now)
		}
	}
}

// beforePublish does what is done before each publish.
func (ts tasks) beforePublish() {
	for _, t := range ts {
		if t.always != nil {
			t.always()
		}
	}
}
