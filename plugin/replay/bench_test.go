package replay

import (
	"testing"
	"time"
)

const benchmarkIDs = 1_000_000

// shuffled returns 0 to benchmarkIDs-1 in an order that no cache foresees.
func shuffled(i int) uint64 { return uint64(i) * 611_953 % benchmarkIDs }

func benchmarkSet(b *testing.B) *Set {
	s := New(benchmarkIDs, 5*time.Minute)
	for i := range uint64(benchmarkIDs) {
		if s.Insert(uint32(i%10_000), messageID(i), epoch+int64(i*600/benchmarkIDs), Entry{}) != Inserted {
			b.Fatal("not inserted")
		}
	}
	b.ReportAllocs()
	return s
}

// Of a million ids.
func BenchmarkLookupHit(b *testing.B) {
	s := benchmarkSet(b)
	for i := 0; b.Loop(); i++ {
		n := shuffled(i)
		if _, found := s.Lookup(uint32(n%10_000), messageID(n)); !found {
			b.Fatal("not found")
		}
	}
}

// In a million ids.
func BenchmarkLookupMiss(b *testing.B) {
	s := benchmarkSet(b)
	for i := 0; b.Loop(); i++ {
		if _, found := s.Lookup(uint32(i%10_000), messageID(uint64(benchmarkIDs+i))); found {
			b.Fatal("found")
		}
	}
}

// Into a set that grows from nothing to a million ids, again and again.
func BenchmarkInsert(b *testing.B) {
	s := New(benchmarkIDs, 5*time.Minute)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if s.Len() == benchmarkIDs {
			b.StopTimer()
			s = New(benchmarkIDs, 5*time.Minute)
			b.StartTimer()
		}
		if s.Insert(uint32(i%10_000), messageID(uint64(i)), epoch+int64(i%600), Entry{}) != Inserted {
			b.Fatal("not inserted")
		}
	}
}

func BenchmarkRemoveAndInsert(b *testing.B) {
	s := benchmarkSet(b)
	for i := 0; b.Loop(); i++ {
		n := shuffled(i)
		device, id := uint32(n%10_000), messageID(n)
		if !s.Remove(device, id) || s.Insert(device, id, epoch, Entry{}) != Inserted {
			b.Fatal("not removed and inserted")
		}
	}
}

// One operation forgets one of a million ids.
func BenchmarkExpire(b *testing.B) {
	const limit = 256
	var s *Set
	b.ReportAllocs()
	for done := 0; done < b.N; {
		if s == nil || s.Len() == 0 {
			b.StopTimer()
			s = benchmarkSet(b)
			b.StartTimer()
		}
		done += s.Expire(epoch+2000, limit)
	}
}

// All that a publish costs: Expire, Forgotten, Lookup and Insert, at a steady
// 600,000 ids.
func BenchmarkPublish(b *testing.B) {
	const rate = 2000
	s := New(benchmarkIDs, 5*time.Minute)
	i := 0
	publish := func() {
		now := epoch + int64(i/rate)
		device, id := uint32(i%10_000), messageID(uint64(i))
		s.Expire(now, 4)
		if s.Forgotten(now) {
			b.Fatal("forgotten")
		}
		if _, found := s.Lookup(device, id); found {
			b.Fatal("found")
		}
		if s.Insert(device, id, now, Entry{}) != Inserted {
			b.Fatal("not inserted")
		}
		i++
	}
	for s.Len() < 305*rate && i < 400*rate {
		publish()
	}
	b.ReportAllocs()
	for b.Loop() {
		publish()
	}
	b.ReportMetric(float64(s.Len()), "ids")
}
