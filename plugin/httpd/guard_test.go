package httpd

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func addr(s string) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(s), 1))
}

// TestGuessesOfOneAddress: after a burst one guess a second is answered, however an address is written.
func TestGuessesOfOneAddress(t *testing.T) {
	for _, same := range [][]string{
		{"192.0.2.1", "::ffff:192.0.2.1"},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"},
		{"fe80::1%eth0", "fe80::2%eth1"},
	} {
		g, now := newGuard(nil, nil), time.Unix(1e9, 0)
		answered := 0
		for i := range 10 * guessesBurst {
			if wait := g.guess(addr(same[i%2]), now); wait == 0 {
				answered++
			} else if wait > guessInterval {
				t.Errorf("%v: wait %v", same, wait)
			}
		}
		if answered != guessesBurst {
			t.Errorf("%v: %d guesses were answered at once", same, answered)
		}
		for i := range 10 {
			now = now.Add(guessInterval)
			if g.guess(addr(same[i%2]), now) != 0 || g.guess(addr(same[0]), now) == 0 {
				t.Errorf("%v: not one guess in %v", same, guessInterval)
			}
		}
		if g.guess(addr("192.0.2.2"), now) != 0 || g.guess(addr("2001:db8:1:3::1"), now) != 0 {
			t.Errorf("%v: the guesses of others were held back", same)
		}
		refused, limited := g.refused.Load(), g.limited.Load()
		if refused != guessesBurst+12 || limited != 9*guessesBurst+10 {
			t.Errorf("%v: counted %d and %d", same, refused, limited)
		}
	}
}

// TestGuessesOfManyAddresses: the table is bounded, and no number of addresses gives one its guesses back, or more than one
// bucket to those that find it full.
func TestGuessesOfManyAddresses(t *testing.T) {
	g, now := newGuard(nil, nil), time.Unix(1e9, 0)
	attacker := addr("192.0.2.1")
	for range guessesBurst {
		g.guess(attacker, now)
	}
	many := func(i int) net.Addr { return addr(fmt.Sprintf("2001:db8:%x:%x::1", i>>16, i&0xffff)) }
	answered := 0
	for i := range 20 * maxGuessers {
		if i%1000 == 0 {
			now = now.Add(time.Millisecond) // it takes a while
		}
		if g.guess(many(i), now) == 0 {
			answered++
		}
		if g.guess(attacker, now) == 0 {
			t.Fatalf("after %d addresses the attacker has guesses again", i)
		}
	}
	if len(g.buckets) > maxGuessers || answered > maxGuessers+guessesBurst {
		t.Errorf("%d buckets, %d guesses answered", len(g.buckets), answered)
	}
	// When the buckets are full again they are forgotten, and there is room.
	now = now.Add(guessesBurst*guessInterval + sweepInterval)
	g.guess(addr("203.0.113.1"), now)
	if len(g.buckets) != 1 {
		t.Errorf("%d buckets are kept", len(g.buckets))
	}
}

// TestRefusalsAreReported within a bound, and none goes uncounted; the log has a line a minute.
func TestRefusalsAreReported(t *testing.T) {
	reported, unreported, logged, lines := 0, 0, uint64(0), 0
	g := newGuard(func(r Refusal) { reported++; unreported += r.Unreported }, func(_ Refusal, n uint64) { lines++; logged += n })
	now := time.Unix(1e9, 0)
	for i := range 1000 {
		g.guess(addr(fmt.Sprintf("192.0.2.%d", i%250)), now)
	}
	if reported != reportsBurst || lines != 1 {
		t.Errorf("%d reports, %d lines", reported, lines)
	}
	now = now.Add(logInterval)
	g.guess(addr("192.0.2.1"), now)
	if reported+unreported != 1001 || logged != 1001 || lines != 2 {
		t.Errorf("%d refusals reported, %d left out; %d logged in %d lines", reported, unreported, logged, lines)
	}
}

// TestGuessing: over TCP, an address that guesses is answered with 429 at once, and who has the token is served all the
// while from that same address. Nothing of the token is told.
func TestGuessing(t *testing.T) {
	var mu sync.Mutex
	var refusals []Refusal
	s := start(t, aService{}, func(o *Options) {
		o.Refused = func(r Refusal) {
			mu.Lock()
			defer mu.Unlock()
			refusals = append(refusals, r)
		}
	})
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	get := func(path, authorization string) *http.Response {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, "http://"+s.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		a, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		return a
	}
	codes := map[int]int{}
	paths := []string{"/v1/devices/d", "/metrics", "/nothing", "/healthz"}
	for i := range 10 * guessesBurst {
		a := get(paths[i%len(paths)], fmt.Sprintf("Bearer guess%d", i))
		codes[a.StatusCode]++
		if a.StatusCode == 429 {
			if seconds, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || seconds < 1 || !a.Close {
				t.Fatalf("429 with Retry-After %q, closed %v", a.Header.Get("Retry-After"), a.Close)
			}
		}
		if i%10 == 0 {
			if a := get("/v1/devices/d", "Bearer "+testToken); a.StatusCode != 200 || a.Close {
				t.Fatalf("with the token: %s", a.Status)
			}
		}
	}
	if codes[401] == 0 || codes[429] < 8*guessesBurst || codes[401]+codes[429]+codes[200] != 10*guessesBurst {
		t.Errorf("answered %v", codes)
	}
	// A probe that has no token, and shows none, is no guess.
	if a := get("/healthz", ""); a.StatusCode != 200 {
		t.Errorf("/healthz: %s", a.Status)
	}
	if a := get("/metrics", ""); a.StatusCode != 429 {
		t.Errorf("/metrics without a token: %s", a.Status)
	}
	refused, limited := s.guard.refused.Load(), s.guard.limited.Load()
	if refused+limited != 10*guessesBurst+1 || limited != uint64(codes[429]+1) {
		t.Errorf("counted %d and %d", refused, limited)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(refusals) == 0 || len(refusals) > reportsBurst+60 || strings.Contains(fmt.Sprint(refusals), "guess") {
		t.Errorf("%d refusals reported: %v", len(refusals), refusals)
	}
}
