package replay

import (
	"testing"
	"time"
)

// No call does more than its limit of steps, and small limits keep up.
func TestExpireLimit(t *testing.T) {
	const n = 10_000
	s := New(n, 300*time.Second)
	for i := range uint64(n) {
		s.Insert(1, messageID(i), epoch+int64(i%100), Entry{})
	}
	if got := s.Expire(epoch+300, all); got != 0 {
		t.Fatalf("forgot %d in their window", got)
	}
	total, calls := 0, 0
	for ; s.Len() > 0; calls++ {
		got := s.Expire(epoch+500, 7)
		if got > 7 {
			t.Fatalf("forgot %d with a limit of 7", got)
		}
		total += got
	}
	if total != n || calls > n/7+20 {
		t.Errorf("forgot %d in %d calls, want %d in %d", total, calls, n, n/7)
	}
	if got := s.Expire(epoch+500, 0); got != 0 {
		t.Errorf("limit 0: forgot %d", got)
	}
}

// The wheel's empty slots count as steps too. After a jump there are many, after
// a small step there are not.
func TestExpireSteps(t *testing.T) {
	s := New(10, 300*time.Second)
	steps := func(now int64) (n int) {
		for n = 1; ; n++ {
			hand := s.hand
			removed := s.Expire(now, 1)
			if n > 1 && s.hand-hand > slotSweep {
				t.Fatalf("one step passed %d slots", s.hand-hand)
			}
			if removed > 0 {
				return n
			}
			if n > 2*slots/slotSweep {
				t.Fatalf("not forgotten in %d steps", n)
			}
		}
	}
	s.Insert(1, messageID(0), epoch, Entry{})
	if got := steps(epoch + year); got < 10 || got > slots/slotSweep+2 {
		t.Errorf("%d steps after a jump of a year", got)
	}
	s.Expire(epoch+year, all)
	for now := int64(epoch + year); now < epoch+year+turn; now += 50 {
		s.Expire(now, 4)
	}
	now := int64(epoch + year + turn)
	s.Insert(1, messageID(0), now-300, Entry{})
	s.Expire(now, 4)
	s.Expire(now-10, 4)
	if got := steps(now + 4); got > 3 {
		t.Errorf("%d steps after a step back of 10 s", got)
	}
}

// With the limits that Expire's documentation names, the set stays at a window's
// worth of ids under a steady load, ticks or not.
func TestSteadyState(t *testing.T) {
	const rate, tolerance = 50, 60
	g := newGate(100_000, tolerance)
	n := uint64(0)
	for now := int64(epoch); now < epoch+3600; now++ {
		for range rate {
			n++
			if got := g.accept(now, 1, messageID(n), now); got != "accepted" {
				t.Fatalf("at %+d: %s", now-epoch, got)
			}
		}
		if most := rate * (tolerance + 1 + 1<<slotShift); g.Len() > most {
			t.Fatalf("at %+d: %d ids, want at most %d", now-epoch, g.Len(), most)
		}
	}
}
