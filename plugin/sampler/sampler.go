// Package sampler bounds the log lines that clients can provoke: for each client, and for all of them together. What is
// left out is counted.
package sampler

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds: of one client one line a second, after a burst of 100; of all together 20 a second, after a burst of 200.
// Errors have as much to themselves, so that no flood of warnings hides one.
const (
	ClientPerSecond = 1
	ClientBurst     = 100
	PerSecond       = 20
	Burst           = 200
	// clients is how many clients are distinguished. Those whose names fall into the same place share what one has.
	clients = 4096
	// maxKinds is how many kinds of lines are counted apart.
	maxKinds = 32
	// reportEvery is the least time between two reports of what was left out.
	reportEvery = time.Second
)

// A bucket admits a line while its time is not more than burst lines ahead of the clock. The zero value is full.
type bucket struct{ next int64 } // in nanoseconds since 1970

func (b *bucket) take(now int64, interval time.Duration, burst int) bool {
	if b.next < now {
		b.next = now
	}
	if b.next-now > int64(interval)*int64(burst-1) {
		return false
	}
	b.next += int64(interval)
	return true
}

// A Sampler decides which lines are written. Safe for concurrent use; its lock is held for a few assignments. It takes
// 32 KiB, and no more for any number of clients.
type Sampler struct {
	seed maphash.Seed

	mu        sync.Mutex // guards what follows
	clients   [clients]bucket
	warnings  bucket
	errors    bucket
	leftOut   map[string]int // by kind
	reported  time.Time
	suspected bool // there is something in leftOut
}

// New returns a Sampler that has written nothing yet.
func New() *Sampler {
	return &Sampler{seed: maphash.MakeSeed(), leftOut: make(map[string]int)}
}

// Allow reports whether a line may be written at the time now, and counts it otherwise. client is who has provoked it;
// kind is what the line says, one of few texts; isError is whether it is an error.
func (s *Sampler) Allow(now time.Time, client []byte, kind string, isError bool) bool {
	place := maphash.Bytes(s.seed, client) % clients
	at := now.UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := &s.warnings
	if isError {
		all = &s.errors
	}
	if s.clients[place].take(at, time.Second/ClientPerSecond, ClientBurst) && all.take(at, time.Second/PerSecond, Burst) {
		return true
	}
	if _, known := s.leftOut[kind]; !known && len(s.leftOut) >= maxKinds {
		kind = "others"
	}
	s.leftOut[kind]++
	s.suspected = true
	return false
}

// Report returns how many lines were left out since the last report, and how many of each kind, as "KIND: N, KIND: N";
// 0 where there are none, or the last report is less than a second ago.
func (s *Sampler) Report(now time.Time) (count int, kinds string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.suspected || now.Sub(s.reported) < reportEvery {
		return 0, ""
	}
	var parts []string
	for kind, n := range s.leftOut {
		count += n
		parts = append(parts, fmt.Sprintf("%s: %d", kind, n))
	}
	slices.Sort(parts)
	clear(s.leftOut)
	s.suspected, s.reported = false, now
	return count, strings.Join(parts, ", ")
}
