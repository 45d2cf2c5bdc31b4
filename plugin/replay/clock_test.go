package replay

import (
	"fmt"
	"math"
	"testing"
	"time"
)

func TestTimestampRange(t *testing.T) {
	s := New(10, 5*time.Minute)
	for i, timestamp := range []int64{math.MinInt64, -1, math.MaxUint32 + 1, math.MaxInt64} {
		if got := s.Insert(1, messageID(uint64(i)), timestamp, Entry{}); got != Stale {
			t.Errorf("Insert stamped %d: %v, want Stale", timestamp, got)
		}
	}
	for i, timestamp := range []int64{0, math.MaxUint32} {
		if got := s.Insert(2, messageID(uint64(i)), timestamp, Entry{}); got != Inserted {
			t.Errorf("Insert stamped %d: %v, want Inserted", timestamp, got)
		}
	}
	if got := s.Expire(math.MinInt64, all); got != 0 {
		t.Errorf("Expire at the beginning of time forgot %d, want 0", got)
	}
	if got := s.Expire(math.MaxInt64, all); got != 2 {
		t.Errorf("Expire at the end of time forgot %d, want 2", got)
	}
	s.Restore([]Span{{math.MinInt64, 5}, {9, 8}, {math.MaxUint32 - 1, math.MaxInt64}})
	if got, want := fmt.Sprint(s.Spans()), fmt.Sprint([]Span{{0, 5}, {math.MaxUint32 - 1, math.MaxUint32}}); got != want {
		t.Errorf("Spans: %v, want %v", got, want)
	}
}

// skewed returns the clock of one of the devices 0 to 10 when it is now: it is
// wrong by up to skew, device 0's the slowest, 5's right, 10's the fastest.
func skewed(device uint32, now, skew int64) int64 { return now + (int64(device)-5)*skew/5 }

// fleet has the devices publish at now, when the broker's clock says clock.
func (g gate) fleet(clock, now, skew int64) (accepted int) {
	for device := range uint32(11) {
		if g.accept(clock, device, messageID(uint64(now)), skewed(device, now, skew)) == "accepted" {
			accepted++
		}
	}
	return accepted
}

// A jump of the broker's clock, whatever its length and distance, and back again
// replays nothing, and bars a device with the right time no longer than the
// fastest device's clock is ahead.
func TestJumpForwardAndBack(t *testing.T) {
	const tolerance = 300
	for _, skew := range []int64{0, 2, tolerance} {
		for _, distance := range []int64{10, tolerance, 2*tolerance + 1, 3600, turn, year, 50 * year} {
			for _, length := range []int64{0, 1, 60, tolerance, 3600} {
				g := newGate(100_000, tolerance)
				now := int64(epoch)
				for ; now < epoch+2*tolerance; now++ {
					if got := g.fleet(now, now, skew); got != 11 {
						t.Fatalf("skew %d: at %+d before the jump %d of 11 accepted", skew, now-epoch, got)
					}
				}
				for jump := now; now < jump+length; now++ {
					g.fleet(now+distance, now, skew)
					g.Set.Expire(now+distance, 1000)
				}
				back := now
				for sent := int64(epoch); sent < epoch+2*tolerance; sent += 11 {
					for device := range uint32(11) {
						if got := g.accept(back, device, messageID(uint64(sent)), skewed(device, sent, skew)); got == "accepted" {
							t.Fatalf("skew %d distance %d length %d: replay accepted", skew, distance, length)
						}
					}
				}
				g.expect(t, "accepted", back+skew, 5, messageID(0), back+skew)
				if got := g.fleet(back+2*skew, back+2*skew, skew); got != 11 {
					t.Errorf("skew %d distance %d length %d: %d of 11 accepted after the jump", skew, distance, length, got)
				}
			}
		}
	}
}

// The devices' clocks jump together with the broker's, and it lasts longer than
// the window, so that messages of the wrong year were accepted and forgotten.
func TestSharedJump(t *testing.T) {
	const tolerance = 300
	g := newGate(1000, tolerance)
	now := int64(epoch)
	for ; now < epoch+1000; now += 10 {
		g.expect(t, "accepted", now, 1, messageID(uint64(now)), now)
	}
	for ; now < epoch+5000; now += 10 {
		g.expect(t, "accepted", now+year, 1, messageID(uint64(now)), now+year)
	}
	back := now
	for ; now < epoch+9000; now += 10 {
		g.expect(t, "accepted", now, 1, messageID(uint64(now)), now)
	}
	// Nothing of either time is accepted when the clock is there again.
	for stamp := int64(epoch); stamp < epoch+1000; stamp += 10 {
		g.expect(t, "forgotten", stamp, 1, messageID(uint64(stamp)), stamp)
	}
	for stamp := int64(epoch + 1000); stamp < epoch+5000; stamp += 10 {
		if got := g.accept(stamp+year, 1, messageID(uint64(stamp)), stamp+year); got == "accepted" {
			t.Fatalf("replay accepted a year later")
		}
	}
	// What was remembered of the wrong year does not stay for the year.
	g = newGate(1000, tolerance)
	for now = back - 2*tolerance; now < back; now += 10 {
		g.expect(t, "accepted", now+year, 1, messageID(uint64(now)), now+year)
	}
	wrong := g.Len()
	if wrong < 30 {
		t.Fatalf("%d ids, want a window's worth", wrong)
	}
	for ; now < back+turn+10; now += 10 {
		g.Set.Expire(now, all)
	}
	if g.Len() != 0 {
		t.Errorf("%d of %d ids of the wrong year are left after three days", g.Len(), wrong)
	}
	for stamp := back - 2*tolerance; stamp < back; stamp += 10 {
		g.expect(t, "forgotten", stamp+year, 1, messageID(uint64(stamp)), stamp+year)
	}
}

// A clock that steps back, then runs on, replays nothing and forgets nothing early.
func TestStepBack(t *testing.T) {
	const tolerance = 300
	for _, step := range []int64{1, 5, tolerance, 2*tolerance + 1, 3600, year, epoch - 10} {
		g := newGate(10_000, tolerance)
		for now := int64(epoch); now < epoch+2*tolerance; now++ {
			g.expect(t, "accepted", now, 1, messageID(uint64(now)), now)
		}
		for now := epoch + 2*tolerance - step; now < epoch+2*tolerance; now += 1 + step/1000 {
			for stamp := max(epoch, now-tolerance); stamp < min(epoch+2*tolerance, now+tolerance+1); stamp += 7 {
				if got := g.accept(now, 1, messageID(uint64(stamp)), stamp); got == "accepted" {
					t.Fatalf("step %d: stamped %+d accepted again at %+d", step, stamp-epoch, now-epoch)
				}
			}
		}
		now := int64(epoch + 2*tolerance)
		g.expect(t, "accepted", now, 1, messageID(uint64(now)), now)
		g.expect(t, "replay", now+tolerance, 1, messageID(uint64(now)), now)
	}
}

// The hosts without a battery for their clock start in 1970 with the ids of
// before. They must still know them when the clock is right again.
func TestStartIn1970(t *testing.T) {
	g := newGate(1000, 300)
	for stamp := int64(epoch); stamp < epoch+300; stamp++ {
		g.Insert(1, messageID(uint64(stamp)), stamp, Entry{})
	}
	g.Set.Expire(0, all)
	g.expect(t, "accepted", 5, 1, messageID(5), 5)
	for stamp := int64(epoch); stamp < epoch+300; stamp++ {
		g.expect(t, "replay", epoch+300, 1, messageID(uint64(stamp)), stamp)
	}
	g.expect(t, "accepted", epoch+300, 1, messageID(1), epoch+300)
	g.Set.Expire(epoch+601, all)
	if got := g.Len(); got != 1 {
		t.Errorf("%d ids, want 1", got)
	}
	g.expect(t, "forgotten", 5, 1, messageID(5), 5)
}
