package replay

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
	"unsafe"
)

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

// The most expensive operation takes one block from the heap.
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
