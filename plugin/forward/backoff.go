package forward

import (
	"math/rand/v2"
	"time"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// fate is what happens to a request after an attempt.
type fate uint8

const (
	retry     fate = iota
	delivered      // all of the request
	dead           // the one message of the request
	gone           // the address is, and an operator is to say whether it is back
	split          // the backend refused a batch: half of it may do better
	hold           // the Store failed
	noRoom         // the Store has no room for the dead letter
	kept           // the backend refuses everything: nothing is given up
	doubted        // the backend refuses this message, and may take it yet
)

// backoff returns a random time below a ceiling that doubles with each failure, from 100 ms at the first to limit:
// exponential back-off with full jitter.
func backoff(failures int, limit time.Duration) time.Duration {
	ceiling := limit
	if shift := failures - 1; shift < 20 {
		ceiling = min(limit, minBackoff<<shift)
	}
	return rand.N(ceiling)
}
