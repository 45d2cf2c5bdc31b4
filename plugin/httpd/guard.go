package httpd

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Bounds on guessing. What a client may cost is their product: some 0.5 MiB.
const (
	// guessesBurst requests without the token are answered with 401 to one address at once, and then one each
	// guessInterval; the others with 429.
	guessesBurst  = 20
	guessInterval = time.Second
	// maxGuessers is how many addresses have a bucket of their own. Those that come while there is no room share one.
	maxGuessers = 4096
	// sweepInterval is the least time between two searches for buckets that are full again.
	sweepInterval = time.Second
	// Refusals are reported at this rate at most; a report says how many were not.
	reportsBurst    = 50
	reportsInterval = 100 * time.Millisecond
	// logInterval is the time between two lines of the log about refusals.
	logInterval = time.Minute
)

// A Refusal is a request without the valid token. It holds nothing of what stood in the token's place.
type Refusal struct {
	Client string // address and port
	// Unreported is how many other refusals there were since the last one that was reported.
	Unreported int
}

// A guard holds back those who guess the token. It never sees a request that has it, so these cannot be slowed.
//
// A bucket is forgotten only when it is full again, and is then no different from a new one. So no number of addresses
// gets a client its guesses back: where all buckets are in use, the addresses that have none share one.
//
// Safe for concurrent use.
type guard struct {
	report func(Refusal)         // called without a lock; may be nil
	warn   func(Refusal, uint64) // called once a logInterval at most, with the refusals since the last call

	refused, limited atomic.Uint64 // answered with 401, and with 429

	mu        sync.Mutex // guards what follows
	buckets   map[netip.Addr]*rate.Limiter
	shared    *rate.Limiter
	swept     time.Time
	reports   *rate.Limiter
	missed    int // refusals since the last report
	warned    time.Time
	sinceWarn uint64
}

func newGuard(report func(Refusal), warn func(Refusal, uint64)) *guard {
	return &guard{
		report: report, warn: warn,
		buckets: make(map[netip.Addr]*rate.Limiter),
		shared:  newBucket(),
		reports: rate.NewLimiter(rate.Every(reportsInterval), reportsBurst),
	}
}

func newBucket() *rate.Limiter { return rate.NewLimiter(rate.Every(guessInterval), guessesBurst) }

// guess counts a request without the token. 0: answer it; else it is one too many, and the next may come after that time.
func (g *guard) guess(from net.Addr, now time.Time) (wait time.Duration) {
	g.mu.Lock()
	bucket := g.bucket(peer(from), now)
	if bucket.AllowN(now, 1) {
		g.refused.Add(1)
	} else {
		g.limited.Add(1)
		missing := 1 - bucket.TokensAt(now)
		wait = max(time.Duration(missing*float64(guessInterval)), time.Millisecond)
	}
	refusal := Refusal{Client: from.String(), Unreported: g.missed}
	g.sinceWarn++
	told := g.reports.AllowN(now, 1)
	if told {
		g.missed = 0
	} else {
		g.missed++
	}
	count := uint64(0)
	if g.warned.IsZero() || now.Sub(g.warned) >= logInterval {
		g.warned, count, g.sinceWarn = now, g.sinceWarn, 0
	}
	g.mu.Unlock()
	if told && g.report != nil {
		g.report(refusal)
	}
	if count > 0 && g.warn != nil {
		g.warn(refusal, count)
	}
	return wait
}

// bucket returns the bucket of an address. The caller holds mu.
func (g *guard) bucket(from netip.Addr, now time.Time) *rate.Limiter {
	if b, ok := g.buckets[from]; ok {
		return b
	}
	if len(g.buckets) >= maxGuessers && now.Sub(g.swept) >= sweepInterval {
		g.swept = now
		for address, b := range g.buckets {
			if b.TokensAt(now) >= guessesBurst {
				delete(g.buckets, address)
			}
		}
	}
	if len(g.buckets) >= maxGuessers {
		return g.shared
	}
	b := newBucket()
	g.buckets[from] = b
	return b
}

// peer is whom a connection is taken to be from: an IPv4 address, also where it is written as an IPv6 one, or the first 64
// bits of an IPv6 address, which is what one subscriber of a network has. The zero value stands for all others.
func peer(from net.Addr) netip.Addr {
	tcp, ok := from.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	address := tcp.AddrPort().Addr().Unmap().WithZone("")
	if address.Is6() {
		if prefix, err := address.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return address
}
