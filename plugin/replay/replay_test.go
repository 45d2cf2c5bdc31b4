package replay

import (
	"encoding/binary"
	"math"
	"runtime"
	"testing"
	"time"
)

const (
	epoch = 1_727_712_000
	year  = 365 * 24 * 3600
	all   = math.MaxInt
)

func messageID(n uint64) (id [16]byte) {
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

// gate accepts messages in the order that the documentation of Set prescribes.
type gate struct {
	*Set
	tolerance int64
}

func newGate(capacity int, tolerance int64) gate {
	return gate{New(capacity, time.Duration(tolerance)*time.Second), tolerance}
}

func (g gate) accept(now int64, device uint32, id [16]byte, timestamp int64) string {
	g.Expire(now, 4)
	if timestamp < now-g.tolerance || timestamp > now+g.tolerance {
		return "out of tolerance"
	}
	if g.Forgotten(timestamp) {
		return "forgotten"
	}
	if _, found := g.Lookup(device, id); found {
		return "replay"
	}
	switch g.Insert(device, id, timestamp, Entry{}) {
	case Inserted:
		return "accepted"
	case Full:
		return "full"
	default:
		return "contradiction"
	}
}

func (g gate) expect(t *testing.T, want string, now int64, device uint32, id [16]byte, timestamp int64) {
	t.Helper()
	if got := g.accept(now, device, id, timestamp); got != want {
		t.Errorf("message stamped %+d at %+d: %s, want %s", timestamp-epoch, now-epoch, got, want)
	}
}

func TestKey(t *testing.T) {
	s := New(10, 5*time.Minute)
	want := Entry{Tag: [12]byte{1, 7: 16, 11: 255}, Session: 0x89abcdef}
	id := [16]byte{0: 1, 15: 2}
	if got := s.Insert(7, id, epoch, want); got != Inserted {
		t.Fatalf("Insert: %v, want Inserted", got)
	}
	if got := s.Insert(7, id, epoch+1, Entry{}); got != Duplicate {
		t.Errorf("Insert again: %v, want Duplicate", got)
	}
	if got, found := s.Lookup(7, id); !found || got != want {
		t.Errorf("Lookup: %v, %v, want %v", got, found, want)
	}
	for _, other := range []struct {
		device uint32
		id     [16]byte
	}{{8, id}, {7 << 24, id}, {1<<24 | 7, id}, {7, [16]byte{0: 1, 15: 3}}, {7, [16]byte{0: 2, 15: 2}}, {7, [16]byte{}}} {
		if _, found := s.Lookup(other.device, other.id); found {
			t.Errorf("found device %d id %x, which was not inserted", other.device, other.id)
		}
		if s.Remove(other.device, other.id) {
			t.Errorf("removed device %d id %x, which was not inserted", other.device, other.id)
		}
	}
}

// An id is remembered in the last second in which its message is accepted, and
// goes within a slot's width after it.
func TestWindow(t *testing.T) {
	const tolerance = 300
	for stamp := int64(epoch); stamp < epoch+8; stamp++ {
		for _, ahead := range []int64{-tolerance, -1, 0, 1, tolerance} {
			g := newGate(10, tolerance)
			g.expect(t, "accepted", stamp-ahead, 1, messageID(1), stamp)
			for now := stamp - ahead; now <= stamp+tolerance; now++ {
				g.Set.Expire(now, all)
				g.expect(t, "replay", now, 1, messageID(1), stamp)
			}
			gone := stamp + tolerance + 1<<slotShift
			g.Set.Expire(gone, all)
			if _, found := g.Lookup(1, messageID(1)); found || g.Len() != 0 {
				t.Errorf("stamped %d: still remembered at %d", stamp, gone)
			}
			g.expect(t, "forgotten", stamp+tolerance, 1, messageID(1), stamp)
			g.expect(t, "accepted", gone, 1, messageID(1), gone)
		}
	}
}

func TestFractionOfTolerance(t *testing.T) {
	for _, c := range []struct {
		tolerance time.Duration
		seconds   int64
	}{{0, 0}, {1, 1}, {time.Second, 1}, {1500 * time.Millisecond, 2}, {math.MaxInt64, 9223372037}} {
		if got := New(1, c.tolerance).tolerance; got != c.seconds {
			t.Errorf("tolerance %v: %d s, want %d", c.tolerance, got, c.seconds)
		}
	}
}

func TestNewPanics(t *testing.T) {
	for _, c := range []struct {
		capacity  int
		tolerance time.Duration
		want      string
	}{
		{0, 0, "replay: capacity out of range"},
		{-1, 0, "replay: capacity out of range"},
		{MaxCapacity + 1, 0, "replay: capacity out of range"},
		{1, -1, "replay: negative tolerance"},
	} {
		func() {
			defer func() {
				if got := recover(); got != c.want {
					t.Errorf("New(%d, %v) panics with %v, want %q", c.capacity, c.tolerance, got, c.want)
				}
			}()
			New(c.capacity, c.tolerance)
		}()
	}
}

func TestCapacity(t *testing.T) {
	for _, capacity := range []int{1, 2, slabRecords - 1, slabRecords, 3*slabRecords + 1} {
		g := newGate(capacity, 300)
		for n := range capacity {
			g.expect(t, "accepted", epoch, 1, messageID(uint64(n)), epoch)
		}
		if g.Len() != capacity || g.Capacity() != capacity {
			t.Fatalf("%d of %d, want %d", g.Len(), g.Capacity(), capacity)
		}
		// Full: all are still there, none is added, and what is removed makes room.
		g.expect(t, "full", epoch, 2, messageID(0), epoch)
		g.expect(t, "full", epoch+300, 2, messageID(0), epoch+300)
		for n := range capacity {
			g.expect(t, "replay", epoch+300, 1, messageID(uint64(n)), epoch)
		}
		if !g.Remove(1, messageID(0)) || g.Remove(1, messageID(0)) {
			t.Error("Remove: want true once")
		}
		g.expect(t, "accepted", epoch+300, 2, messageID(0), epoch+300)
		g.expect(t, "full", epoch+300, 1, messageID(0), epoch+300)
		// So does what has passed. A second round takes no more memory.
		used := g.used
		for n := range capacity - 1 {
			g.expect(t, "accepted", epoch+400, 3, messageID(uint64(n)), epoch+400)
		}
		g.expect(t, "full", epoch+400, 3, messageID(math.MaxUint64), epoch+400)
		if g.used != used || int(used) != capacity {
			t.Errorf("%d records in use, then %d, want %d", used, g.used, capacity)
		}
	}
}

// A tolerance that shrinks and grows again, or only grows, opens no way back.
func TestSetTolerance(t *testing.T) {
	g := newGate(1000, 300)
	for stamp := int64(epoch); stamp <= epoch+600; stamp++ {
		g.expect(t, "accepted", stamp, 1, messageID(uint64(stamp)), stamp)
	}
	g.Set.Expire(epoch+600, all)
	g.SetTolerance(100 * time.Second)
	g.tolerance = 100
	g.Set.Expire(epoch+600, all)
	if got := g.Len(); got < 101 || got > 101+1<<slotShift {
		t.Errorf("%d ids with a tolerance of 100 s, want 101 to 105", got)
	}
	g.SetTolerance(24 * time.Hour)
	g.tolerance = 24 * 3600
	for stamp := int64(epoch); stamp <= epoch+600; stamp++ {
		want := "replay"
		if g.Forgotten(stamp) {
			want = "forgotten"
		}
		g.expect(t, want, epoch+700, 1, messageID(uint64(stamp)), stamp)
	}
	g.expect(t, "replay", epoch+600+24*3600, 1, messageID(epoch+600), epoch+600)
	g.expect(t, "accepted", epoch+700, 1, messageID(1), epoch+601)
}

// Over a restart: what the old set forgot, the new one refuses.
func TestRestore(t *testing.T) {
	g := newGate(1000, 300)
	for stamp := int64(epoch); stamp < epoch+900; stamp++ {
		g.expect(t, "accepted", stamp, 1, messageID(uint64(stamp)), stamp)
	}
	restarted := newGate(1000, 300)
	restarted.Restore(g.Spans())
	for stamp := int64(epoch); stamp < epoch+900; stamp++ {
		want := Inserted
		if g.Forgotten(stamp) {
			want = Stale
		}
		if got := restarted.Insert(1, messageID(uint64(stamp)), stamp, Entry{}); got != want {
			t.Fatalf("stamped %+d: %v, want %v", stamp-epoch, got, want)
		}
	}
	if restarted.Len() != g.Len() {
		t.Errorf("%d ids, want %d", restarted.Len(), g.Len())
	}
}

func TestLenIsConcurrent(t *testing.T) {
	s := New(1000, time.Minute)
	done := make(chan int)
	go func() {
		for s.Len() < s.Capacity() {
			runtime.Gosched()
		}
		done <- s.Len()
	}()
	for i := range uint64(1000) {
		s.Insert(1, messageID(i), epoch, Entry{})
	}
	if got := <-done; got != 1000 {
		t.Errorf("Len: %d, want 1000", got)
	}
}
