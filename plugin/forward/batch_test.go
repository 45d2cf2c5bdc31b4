package forward

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mosquitto-bouncer/plugin/forward/forwardtest"
)

func batches(cfg Config, f func(ms []Message) reply) Config {
	cfg.Sink = &fake{reply: f}
	return cfg
}

// list returns device/n of every message.
func list(ms []Message) string {
	names := make([]string, len(ms))
	for i := range ms {
		names[i] = ms[i].DeviceID + number(&ms[i])
	}
	return strings.Join(names, " ")
}

func TestBatchLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var mu sync.Mutex
		var sent []string
		x := start(t, batches(Config{Batch: 3, Linger: 20 * time.Millisecond}, func(ms []Message) reply {
			mu.Lock()
			sent = append(sent, fmt.Sprint(list(ms), " ", time.Since(begun)))
			mu.Unlock()
			time.Sleep(30 * time.Millisecond)
			return reply{status: 200}
		}))
		at := func(ms int, device string, n int) {
			time.Sleep(time.Until(begun.Add(time.Duration(ms) * time.Millisecond)))
			x.enqueue(message(device, n))
		}
		at(0, "a", 1) // alone for 20 ms
		at(100, "a", 2)
		at(110, "b", 1)
		at(115, "a", 3) // full
		at(200, "a", 4)
		at(210, "b", 2) // a has waited long enough at 220
		at(230, "a", 5) // is in flight until 250
		at(245, "c", 1) // lingers until 265
		at(300, "d", 1) // and Close does not wait
		at(300, "e", 1)
		x.drain()
		want := "a1 20ms; a2 a3 b1 115ms; a4 b2 220ms; c1 a5 265ms; d1 e1 300ms"
		if got := strings.Join(sent, "; "); got != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	})
}

// A batch that was refused is split until the poison is alone; the others are delivered, in order.
func TestBatchIsolatesPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		cfg := batches(Config{Batch: 8, Linger: time.Millisecond, Concurrency: 1}, func(ms []Message) reply {
			sent = append(sent, list(ms))
			if strings.Contains(list(ms), "a3") || strings.Contains(list(ms), "b2") {
				return reply{status: 422, excerpt: list(ms) + " is poison"}
			}
			return reply{status: 202}
		})
		x := start(t, cfg)
		for n := range 4 {
			x.enqueue(message("a", n+1))
		}
		for n := range 4 {
			x.enqueue(message("b", n+1))
		}
		s := x.drain()
		want := "a1 a2 a3 a4 b1 b2 b3 b4; a1 a2 a3 a4; a1 a2; a3 a4; a3; a4; b1 b2 b3 b4; b1 b2; b1; b2; b3 b4"
		if got := strings.Join(sent, "; "); got != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
		if s.Delivered != 6 || s.Dead != 2 || s.Retries != 0 || x.store.Graves() != "a/3 refused 422 4, b/2 refused 422 4" ||
			x.store.Letters[1].Excerpt != "b2 is poison" {
			t.Errorf("%+v %s", s, x.store.Graves())
		}
	})
}

// A batch that failed is sent again as it was, once, also when more of its devices' messages wait. Then it is halved, down to
// the message at fault, which waits alone: its neighbours are delivered, and each device's messages keep their order.
func TestBatchIsolatesFailure(t *testing.T) {
	for name, r := range map[string]reply{
		"500": {status: 500}, "502": {status: 502}, "503": {status: 503}, "504": {status: 504}, "408": {status: 408}, "no answer": {err: errDown},
	} {
		t.Run(name, func(t *testing.T) { isolatesFailure(t, r) })
	}
}

func isolatesFailure(t *testing.T, failure reply) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var sent []string
		cfg := batches(Config{Batch: 8, Linger: time.Millisecond, MaxAge: 10 * time.Minute}, func(ms []Message) reply {
			mu.Lock()
			defer mu.Unlock()
			if sent = append(sent, list(ms)); strings.Contains(list(ms), "a2") {
				return failure
			}
			return reply{status: 200}
		})
		x := start(t, cfg)
		for n := range 3 {
			m := message("a", n+1)
			m.AcceptedAt = m.AcceptedAt.Add(time.Duration(n) * time.Minute)
			x.enqueue(m)
		}
		for _, device := range []string{"b", "c", "d", "e"} {
			x.enqueue(message(device, 1))
		}
		time.Sleep(100 * time.Millisecond)
		x.enqueue(message("b", 2))
		x.enqueue(message("f", 1))
		time.Sleep(5 * time.Second)
		if s := x.Stats(); s.Delivered != 7 || s.Pending != 2 || s.Down || s.Dead != 0 {
			t.Errorf("after 5 s %+v: %q", s, sent)
		}
		if all := "a1 a2 a3 b1 c1 d1 e1"; sent[0] != all || !slices.Contains(sent[1:3], all) {
			t.Errorf("the first two are not the same: %q", sent)
		}
		if s := x.drain(); s.Delivered != 8 || x.store.Count("dead") != 1 || !strings.HasPrefix(x.store.Graves(), "a/2 expired 0 ") {
			t.Errorf("%+v %s", s, x.store.Graves())
		}
	})
}

// What was never sent, and what the backend has no time for, is not the message's fault: the batch stays whole.
func TestBatchIsRetriedWhole(t *testing.T) {
	for name, r := range map[string]reply{"429": {status: 429}, "no connection": {err: &net.OpError{Op: "dial", Err: errDown}}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var sent []string
				x := start(t, batches(Config{Batch: 4, Linger: time.Millisecond}, func(ms []Message) reply {
					if sent = append(sent, list(ms)); len(sent) < 6 {
						return r
					}
					return reply{status: 200}
				}))
				for n := range 2 {
					x.enqueue(message("a", n+1))
					x.enqueue(message("b", n+1))
				}
				if s := x.drain(); s.Delivered != 4 || s.Retries != 5 || strings.Join(sent, ";") != strings.Repeat("a1 a2 b1 b2;", 5)+"a1 a2 b1 b2" {
					t.Errorf("%q %+v", sent, s)
				}
			})
		})
	}
}

func TestBatchMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		cfg := batches(Config{Batch: 6, Linger: time.Millisecond, MaxAge: time.Minute, Concurrency: 1}, func(ms []Message) reply {
			sent = append(sent, list(ms))
			return reply{status: 200}
		})
		x := start(t, cfg)
		for n := range 3 {
			for _, device := range []string{"a", "b"} {
				m := message(device, n+1)
				if n == 0 || device == "b" && n == 1 {
					m.AcceptedAt = m.AcceptedAt.Add(-2 * time.Minute)
				}
				x.enqueue(m)
			}
		}
		s := x.drain()
		if strings.Join(sent, "; ") != "a2 a3; b3" || x.store.Graves() != "a/1 expired 0 0, b/1 expired 0 0, b/2 expired 0 0" || s.Dead != 3 {
			t.Errorf("%q %s %+v", sent, x.store.Graves(), s)
		}
	})
}

// A batch whose delivery panics is split as well.
func TestBatchPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := batches(Config{Batch: 4, Linger: time.Millisecond, Concurrency: 1}, func(ms []Message) reply {
			if strings.Contains(list(ms), "a2") {
				panic("delivery went wrong")
			}
			return reply{status: 200}
		})
		x := start(t, cfg)
		for n := range 4 {
			x.enqueue(message("a", n+1))
		}
		if s := x.drain(); s.Delivered != 3 || s.Dead != 1 || x.store.Graves() != "a/2 panic 0 9" {
			t.Errorf("%+v %s", s, x.store.Graves())
		}
	})
}

// Whatever the backend and the Store do: no two requests with messages of one device at a time, each device's messages in
// order, none lost, the accounts add up at every moment, and a message is sent only when the one before it is settled.
func TestBatchProperty(t *testing.T) {
	sizes := map[int]int{}
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			var mu sync.Mutex
			intn := func(n int) int { mu.Lock(); defer mu.Unlock(); return rnd.IntN(n) }
			busy := map[string]bool{}
			taken := map[string]int{}            // by device, the last message that was answered 2xx
			settled := map[string]map[int]bool{} // by device, what the Store knows
			down := false
			inFlight := 0
			cfg := Config{Batch: 2 + rnd.IntN(30), Linger: 20 * time.Millisecond, Concurrency: 1 + rnd.IntN(8)}
			limit := 1 + rnd.IntN(cfg.Batch)
			concurrency, batch := cfg.Concurrency, cfg.Batch
			cfg = batches(cfg, nil)
			poison := func(n int) bool { return n%17 == 0 }
			long := message("d19", 3000)
			cfg.batchBytes = limit * long.weight()
			cfg.Sink = &fake{reply: func(ms []Message) (r reply) {
				mine := map[string]bool{}
				mu.Lock()
				if inFlight++; inFlight > concurrency || len(ms) > batch || len(ms) > limit || len(ms) == 0 {
					t.Errorf("%d in flight, %d messages", inFlight, len(ms))
				}
				sizes[len(ms)]++
				for _, m := range ms {
					n, _ := strconv.Atoi(number(&m))
					if busy[m.DeviceID] && !mine[m.DeviceID] {
						t.Errorf("%s: two in flight", m.DeviceID)
					}
					mine[m.DeviceID], busy[m.DeviceID] = true, true
					if last := taken[m.DeviceID]; n <= last {
						t.Errorf("%s: %d after %d", m.DeviceID, n, last)
					}
					for n--; n > 0 && !mine[fmt.Sprint(m.DeviceID, "/", n)]; n-- {
						if !settled[m.DeviceID][n] {
							t.Errorf("%s: %s is sent while %d is pending", m.DeviceID, number(&m), n)
						}
					}
					mine[m.DeviceID+"/"+number(&m)] = true
				}
				mu.Unlock()
				time.Sleep(time.Duration(intn(100)) * time.Millisecond)
				what := intn(12)
				mu.Lock()
				defer mu.Unlock()
				inFlight--
				for device := range mine {
					busy[device] = false
				}
				switch {
				case down, what == 0:
					return reply{err: errDown}
				case what == 1:
					return reply{status: 429, retryAfter: 3 * time.Second}
				case what == 2:
					panic("now and then")
				case what == 3:
					return reply{status: 500}
				}
				for _, m := range ms {
					if n, _ := strconv.Atoi(number(&m)); poison(n) {
						return reply{status: 400, excerpt: "poison"}
					}
				}
				for _, m := range ms {
					taken[m.DeviceID], _ = strconv.Atoi(number(&m))
				}
				return reply{status: 200}
			}}
			x := start(t, cfg)
			x.store.failWith(func(operation string, m *Message) error {
				if operation != "delivered" && intn(30) == 0 {
					return errDisk
				}
				if operation != "load" {
					n, _ := strconv.Atoi(number(m))
					mu.Lock()
					defer mu.Unlock()
					if settled[m.DeviceID] == nil {
						settled[m.DeviceID] = map[int]bool{}
					}
					settled[m.DeviceID][n] = true
				}
				return nil
			})
			sent := map[string]int{}
			for range 3000 {
				device := fmt.Sprint("d", intn(20))
				sent[device]++
				x.enqueue(message(device, sent[device]))
				if intn(40) == 0 {
					time.Sleep(time.Duration(intn(500)) * time.Millisecond)
					mu.Lock()
					down = rnd.IntN(4) == 0
					mu.Unlock()
				}
				if s := x.Stats(); s.Accepted != s.Delivered+s.Dead+uint64(s.Pending) || s.Lanes > 20 {
					t.Fatalf("%+v", s)
				}
			}
			mu.Lock()
			down = false
			mu.Unlock()
			s := x.drain() // which checks that every message is accounted for, and the Store that it was in order
			if s.Accepted != 3000 || s.Delivered < 2500 || s.Dead < 50 || s.Down || x.retrying != 0 || x.outage.lanes != 0 || x.readyN != 0 {
				t.Errorf("seed %d: %+v retrying %d failing %d", seed, s, x.retrying, x.outage.lanes)
			}
			for _, l := range x.store.Letters {
				n, _ := strconv.Atoi(forwardtest.Number(l.MessageID))
				if l.Reason != ReasonPanic && (l.Reason != ReasonRefused || l.Status != 400 || l.Excerpt != "poison" || !poison(n)) {
					t.Errorf("dead letter %+v", l)
				}
			}
		})
	}
	if len(sizes) < 10 || sizes[1] == 0 {
		t.Errorf("batches of %v messages", sizes)
	}
}
