package replay

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
	"unsafe"
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

// Chains stay short at every size.
func TestChains(t *testing.T) {
	s := New(200_000, time.Minute)
	for i := range uint64(200_000) {
		s.Insert(uint32(i), messageID(i), epoch, Entry{})
		if n := i + 1; n < 1000 || n%9973 != 0 {
			continue
		}
		// A search for an id that is not there walks the whole chain of its bucket;
		// a bucket that is not split yet is as likely as two that are.
		half := uint32(1)
		for 2*half <= s.buckets {
			half *= 2
		}
		walked := 0.0
		for b := range s.buckets {
			share := 1 / float64(half)
			if b >= half || b < s.buckets-half {
				share /= 2
			}
			for r := s.bucket(b).first &^ more; r != 0; r = s.at(r).chain {
				walked += share
			}
		}
		if walked > 1.2 {
			t.Errorf("%d ids in %d buckets: %.2f records a search", i+1, s.buckets, walked)
		}
	}
}

func TestRecordSize(t *testing.T) {
	if got := unsafe.Sizeof(record{}); got != 52 {
		t.Errorf("a record takes %d bytes, want 52", got)
	}
	if got := unsafe.Sizeof([slabRecords]record{}); got > 32<<10 || got < 32<<10-52 {
		t.Errorf("a slab takes %d bytes, want just under 32 KiB", got)
	}
}

func heap() (allocated, inUse int64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.HeapInuse)
}

// A million ids of 10,000 devices take at most 64 bytes each, tables and all,
// whether the capacity is a million or many.
func TestMemory(t *testing.T) {
	const n = 1_000_000
	for _, capacity := range []int{n, 16 * n} {
		allocated, inUse := heap()
		s := New(capacity, 5*time.Minute)
		random := rand.NewChaCha8([32]byte{})
		for i := range n {
			var id [16]byte
			random.Read(id[:])
			if got := s.Insert(uint32(i%10_000), id, epoch+int64(i%600), Entry{}); got != Inserted {
				t.Fatalf("Insert: %v", got)
			}
		}
		allocated2, inUse2 := heap()
		t.Logf("capacity %d: %.2f bytes an id allocated, %.2f in use",
			capacity, float64(allocated2-allocated)/n, float64(inUse2-inUse)/n)
		if got := allocated2 - allocated; got > 64*n {
			t.Errorf("capacity %d: %d bytes allocated for %d ids", capacity, got, n)
		}
		if got := inUse2 - inUse; got > 64*n {
			t.Errorf("capacity %d: %d bytes in use for %d ids", capacity, got, n)
		}
		runtime.KeepAlive(s)
	}
}

// The dearest operation takes one block from the heap.
func TestAllocations(t *testing.T) {
	const n = 3 * chunkBuckets
	s := New(1_000_000, 5*time.Minute)
	var before, after runtime.MemStats
	most := uint64(0)
	for i := range uint64(n) {
		runtime.ReadMemStats(&before)
		s.Insert(1, messageID(i), epoch, Entry{})
		runtime.ReadMemStats(&after)
		most = max(most, after.TotalAlloc-before.TotalAlloc)
	}
	// Where a slab and a chunk of bucket heads fall due at once, too.
	s = New(1_000_000, 5*time.Minute)
	i := uint64(0)
	for ; s.buckets < chunkBuckets; i++ {
		s.Insert(1, messageID(i), epoch, Entry{})
	}
	s.used = 100*slabRecords - 1
	for n := i + 10; i < n; i++ {
		runtime.ReadMemStats(&before)
		s.Insert(1, messageID(i), epoch, Entry{})
		runtime.ReadMemStats(&after)
		most = max(most, after.TotalAlloc-before.TotalAlloc)
	}
	if s.buckets <= chunkBuckets || s.slabs[100] == nil {
		t.Error("no chunk and slab were added")
	}
	if most < 32<<10 || most >= 64<<10 {
		t.Errorf("an Insert allocated %d bytes, want 32 KiB at most", most)
	}
	if got := testing.AllocsPerRun(1000, func() {
		s.Lookup(1, messageID(i))
		s.Lookup(2, messageID(i))
		s.Insert(1, messageID(i), epoch, Entry{})
		s.Remove(1, messageID(i))
		s.Insert(1, messageID(i), epoch+int64(i%7)*13, Entry{})
		s.Forgotten(epoch)
		s.Expire(epoch+300+int64(i), 10)
		i++
	}); got != 0 {
		t.Errorf("%v allocations", got)
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
