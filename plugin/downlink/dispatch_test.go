package downlink

import (
	"testing"
	"time"
)

// TestExpiredCommandsStay: what the broker could deliver too late is not given to it.
func TestExpiredCommandsStay(t *testing.T) {
	now := time.Unix(1727712000, 900e6)
	for after, want := range map[time.Duration]int64{
		1100 * time.Millisecond:  1, // delivered until the clock's second 1, for the command ends with it
		100 * time.Millisecond:   0,
		30100 * time.Millisecond: 30,
	} {
		if got := remaining(now.Add(after), now); got != want {
			t.Errorf("%v before: %d, want %d", after, got, want)
		}
	}
}
