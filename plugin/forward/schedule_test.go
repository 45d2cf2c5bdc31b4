package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

var errDown = errors.New("connection refused")

// trace collects what a backend was sent.
type trace struct {
	mu   sync.Mutex
	sent []string // device/n
	at   []time.Duration
	from time.Time
}

func (r *trace) add(m *Message) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.from.IsZero() {
		r.from = time.Now()
	}
	r.sent = append(r.sent, m.DeviceID+"/"+number(m))
	r.at = append(r.at, time.Since(r.from))
	return len(r.sent)
}

func TestLaneWaitsWithoutWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace
		cfg := with(func(m *Message) reply {
			if r.add(m) == 1 {
				return reply{status: 429, retryAfter: time.Minute}
			}
			return reply{status: 204}
		})
		cfg.Concurrency = 1
		x := start(t, cfg)
		x.enqueue(message("a", 1))
		x.enqueue(message("a", 2))
		synctest.Wait()
		x.enqueue(message("b", 1))
		synctest.Wait()
		want := Stats{Accepted: 3, Delivered: 1, Pending: 2, Lanes: 1, Retries: 1}
		want.Latency.Counts[0] = 1
		if got := x.Stats(); got != want {
			t.Errorf("while a waits:\n got %+v\nwant %+v", got, want)
		}
		x.drain()
		if got := fmt.Sprint(r.sent, r.at); got != "[a/1 b/1 a/1 a/2] [0s 0s 1m0s 1m0s]" {
			t.Error(got)
		}
	})
}

func TestFairBetweenLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace
		cfg := with(func(m *Message) reply { r.add(m); time.Sleep(time.Millisecond); return reply{status: 200} })
		cfg.Concurrency = 1
		x := start(t, cfg)
		for n := range 4 {
			x.enqueue(message("a", n+1))
		}
		x.enqueue(message("b", 1))
		x.enqueue(message("b", 2))
		x.enqueue(message("c", 1))
		x.drain()
		if got := fmt.Sprint(r.sent); got != "[a/1 b/1 c/1 a/2 b/2 a/3 a/4]" {
			t.Error(got)
		}
	})
}

// Devices whose requests hang until they time out must not take the workers away from the others.
func TestHangingLanesLeaveWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var good trace
		cfg := with(func(m *Message) reply {
			if strings.HasPrefix(m.DeviceID, "slow") {
				time.Sleep(5 * time.Second)
				return reply{err: errDown}
			}
			good.add(m)
			time.Sleep(10 * time.Millisecond)
			return reply{status: 200}
		})
		cfg.Concurrency = 4
		x := start(t, cfg)
		for n := range 100 {
			x.enqueue(message("good", n))
			x.enqueue(message(fmt.Sprint("slow", n), 1))
			time.Sleep(6 * time.Second)
		}
		begun := time.Now()
		for n := range 1000 {
			x.enqueue(message("good", n))
		}
		for x.Stats().Delivered < 1100 {
			time.Sleep(10 * time.Millisecond)
			x.mu.Lock()
			retrying := x.retrying
			x.mu.Unlock()
			if s := x.Stats(); s.InFlight > 4 || s.Retries < 100 || retrying > 2 {
				t.Fatalf("%+v, %d retrying", s, retrying)
			}
		}
		// Alone they take 10 s.
		if d := time.Since(begun); d > 12*time.Second {
			t.Errorf("1000 messages of 10 ms took %v with 100 hanging devices", d)
		}
	})
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const devices = 10000
		const outageTime = 10 * time.Minute
		var mu sync.Mutex
		var sent, inFlight, most int
		up := false
		cfg := with(func(m *Message) reply {
			mu.Lock()
			sent++
			inFlight++
			if sent > 64+breakerThreshold {
				most = max(most, inFlight)
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			inFlight--
			if !up {
				return reply{err: errDown}
			}
			return reply{status: 202}
		})
		x := start(t, cfg)
		for n := range devices {
			x.enqueue(message(fmt.Sprint("d", n), 1))
		}
		time.Sleep(outageTime)
		x.enqueue(message("late", 1))
		mu.Lock()
		if limit := 64 + breakerThreshold + int(outageTime/time.Second); sent > limit || sent < 100 {
			t.Errorf("%d requests to a backend down for %v, want 100 to %d", sent, outageTime, limit)
		}
		if most != 1 {
			t.Errorf("%d requests in flight while the backend is down, want 1", most)
		}
		up = true
		mu.Unlock()
		if !x.Stats().Down {
			t.Error("not down")
		}
		begun := time.Now()
		s := x.drain()
		if s.Delivered != devices+1 || s.Down {
			t.Errorf("%+v", s)
		}
		// At most one probe's interval, one lane's own back-off, and 10,000 requests of 1 ms by 64 workers.
		if d := time.Since(begun); d > maxProbeInterval+maxBackoff+time.Second {
			t.Errorf("recovered after %v", d)
		}
		for line, want := range map[string]int{
			"backend seems down; trying with one message at a time": 1,
			"backend answers again, sending at full rate":           1,
			"backend takes messages again":                          1,
		} {
			if got := x.log.Count(line); got != want {
				t.Errorf("%d lines %q, want %d", got, line, want)
			}
		}
		if n := x.log.Count("backend does not take messages, retrying", `error="connection refused"`, "pending="); n < 9 || n > 11 {
			t.Errorf("%d warnings in %v, want one a minute", n, outageTime)
		}
	})
}

// One device whose message makes the backend fail is its own trouble.
func TestBreakerIgnoresOneLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(m *Message) reply {
			if m.DeviceID == "poison" {
				return reply{status: 500}
			}
			return reply{status: 200}
		})
		x := start(t, cfg)
		x.enqueue(message("poison", 1))
		time.Sleep(time.Hour)
		if s := x.Stats(); s.Down || s.Retries < 100 || s.Retries > 1000 {
			t.Errorf("%+v, want some 240 retries and the backend not down", s)
		}
		begun := time.Now()
		x.enqueue(message("other", 1))
		synctest.Wait()
		if s := x.Stats(); s.Delivered != 1 || time.Since(begun) != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace
		cfg := with(func(m *Message) reply { r.add(m); return reply{status: 503, retryAfter: 40 * time.Second} })
		cfg.MaxAge = time.Minute
		x := start(t, cfg)
		x.enqueue(message("a", 1))
		time.Sleep(30 * time.Second)
		x.enqueue(message("a", 2))
		s := x.drain()
		if s.Dead != 2 || fmt.Sprint(r.sent, r.at) != "[a/1 a/1 a/2] [0s 40s 1m20s]" {
			t.Errorf("%+v %v %v", s, r.sent, r.at)
		}
		if n := x.log.Count("message is dead", "device=a", "reason=expired", "status=0"); n != 2 {
			t.Errorf("%d lines:\n%s", n, x.log)
		}
		if n := x.log.Count("takes messages again"); n != 0 {
			t.Errorf("a recovery that was none:\n%s", x.log)
		}
	})
}

func TestPanicInDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace
		x := start(t, Config{Concurrency: 1, Sink: one(func(m *Message) reply {
			n := r.add(m)
			if strings.HasSuffix(m.MessageID, "1") || n == 4 {
				panic("delivery went wrong")
			}
			return reply{status: 200}
		})})
		for n := range 3 {
			x.enqueue(message("a", n+1))
		}
		s := x.drain()
		if got := fmt.Sprint(r.sent); got != "[a/1 a/1 a/1 a/2 a/2 a/3]" {
			t.Error(got)
		}
		if s.Dead != 1 || s.Delivered != 2 || s.Retries != 3 {
			t.Errorf("%+v", s)
		}
		if n := x.log.Count("message is dead", "reason=panic", "message_id=550e8400-e29b-41d4-a716-000000000001"); n != 1 {
			t.Errorf("log:\n%s", x.log)
		}
	})
}

func TestCloseWithBlockedCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		store := newMemory(t)
		f, err := New(with(func(*Message) reply { return reply{status: 200, body: []byte("x")} }), store,
			func(Response) { <-release }, (&testkit.Log{}).Logger())
		if err != nil {
			t.Fatal(err)
		}
		f.Start(Counts{})
		f.Enqueue("a", store.add(message("a", 1)), 1)
		f.Dispatch()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begun := time.Now()
		err = f.Close(ctx)
		if err == nil || err.Error() != "1 messages were not delivered, and 1 deliveries have not ended" {
			t.Error(err)
		}
		if d := time.Since(begun); d != 3*time.Second+closeGrace {
			t.Errorf("Close took %v", d)
		}
		close(release)
		<-f.exited
	})
}

// panickingLog is a slog.Handler that is no help.
type panickingLog struct{ slog.Handler }

func (panickingLog) Enabled(context.Context, slog.Level) bool  { return true }
func (panickingLog) Handle(context.Context, slog.Record) error { panic("log went wrong") }

func TestPanicInLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace
		replies := []reply{{status: 500}, {status: 400}, {status: 200, unusable: "x"}, {status: 200, body: []byte("x")}, {status: 204}}
		store := newMemory(t)
		f, err := New(with(func(m *Message) reply {
			n := r.add(m)
			if n == 6 {
				panic("delivery went wrong")
			}
			return replies[min(n, len(replies))-1]
		}), store, func(Response) { panic("callback went wrong") }, slog.New(panickingLog{}))
		if err != nil {
			t.Fatal(err)
		}
		f.Start(Counts{})
		for n := range 5 {
			f.Enqueue("a", store.add(message("a", n+1)), 1)
		}
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(r.sent); got != "[a/1 a/1 a/2 a/3 a/4 a/5 a/5]" {
			t.Error(got)
		}
		if s := f.Stats(); s.Delivered != 4 || s.Dead != 1 || s.Retries != 2 || s.AnswersDropped != 2 {
			t.Errorf("%+v", s)
		}
	})
}

func TestRetryAfterBeatsBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, status := range []int{408, 425, 429, 500, 502, 503, 504, 599} {
			var r trace
			x := start(t, with(func(m *Message) reply {
				if r.add(m) == 1 {
					return reply{status: status, retryAfter: 17 * time.Second}
				}
				return reply{status: 200}
			}))
			x.enqueue(message("a", 1))
			if s := x.drain(); fmt.Sprint(r.at) != "[0s 17s]" || s.Delivered != 1 {
				t.Errorf("%d: %v %+v", status, r.at, s)
			}
		}
	})
}

func TestLogIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(m *Message) reply { return reply{status: 422} })
		cfg.Concurrency = 1
		x := start(t, cfg)
		for n := range 5000 {
			x.enqueue(message("a", n))
		}
		synctest.Wait()
		time.Sleep(time.Second)
		x.enqueue(message("a", 5000))
		if s := x.drain(); s.Dead != 5001 {
			t.Errorf("%+v", s)
		}
		if n := x.log.Count("message is dead", "status=422"); n != 101 {
			t.Errorf("%d lines, want 101", n)
		}
		if n := x.log.Count("lines_suppressed=4900"); n != 1 {
			t.Errorf("log:\n%s", x.log)
		}
	})
}

// Whatever the backend does: each device's messages arrive in order and once, none is lost, the accounts add up at
// every moment, and nothing is left at the end.
func TestProperty(t *testing.T) {
	died := uint64(0)
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var mu sync.Mutex
			busy := map[string]bool{}
			done := map[string]int{} // the last message done, by device
			down := false
			intn := func(n int) int { mu.Lock(); defer mu.Unlock(); return rnd.IntN(n) }
			concurrency := 1 + rnd.IntN(20)
			inFlight := 0
			x := start(t, Config{Concurrency: concurrency, Sink: one(func(m *Message) reply {
				n, _ := strconv.Atoi(m.MessageID[24:])
				mu.Lock()
				inFlight++
				if busy[m.DeviceID] || inFlight > concurrency {
					t.Errorf("%s: two in flight, or %d", m.DeviceID, inFlight)
				}
				busy[m.DeviceID] = true
				mu.Unlock()
				time.Sleep(time.Duration(intn(1000)) * time.Millisecond)
				what := intn(10)
				mu.Lock()
				defer mu.Unlock()
				inFlight--
				busy[m.DeviceID] = false
				switch {
				case down, what == 0:
					return reply{err: errDown}
				case what == 1:
					return reply{status: 503, retryAfter: 3 * time.Second}
				case what == 2 && n%7 == 0:
					panic("now and then")
				}
				// One that panics may be given up, unseen.
				if last := done[m.DeviceID]; n != last+1 && (n != last+2 || (n-1)%7 != 0) {
					t.Errorf("%s: %d after %d", m.DeviceID, n, done[m.DeviceID])
				}
				done[m.DeviceID] = n
				if what == 3 {
					return reply{status: 400}
				}
				return reply{status: 200, body: []byte("x")}
			})})
			sent := map[string]int{}
			for range 2000 {
				device := fmt.Sprint("d", intn(30))
				sent[device]++
				x.enqueue(message(device, sent[device]))
				if intn(20) == 0 {
					time.Sleep(time.Duration(intn(2000)) * time.Millisecond)
					mu.Lock()
					down = rnd.IntN(4) == 0
					mu.Unlock()
				}
				if s := x.Stats(); s.Accepted != s.Delivered+s.Dead+uint64(s.Pending) || s.Lanes > 30 {
					t.Fatalf("%+v", s)
				}
			}
			mu.Lock()
			down = false
			mu.Unlock()
			s := x.drain()
			if s.Accepted != 2000 || s.Delivered+s.Dead != 2000 || s.Pending != 0 || s.Lanes != 0 ||
				s.InFlight != 0 || s.Down || x.retrying != 0 || x.outage.lanes != 0 || len(x.waiting) != 0 {
				t.Errorf("seed %d: %+v retrying %d failing %d", seed, s, x.retrying, x.outage.lanes)
			}
			died += uint64(x.log.Count("reason=panic"))
			if len(x.answers) != int(s.Delivered) {
				t.Errorf("%d answers for %d deliveries", len(x.answers), s.Delivered)
			}
			last := map[string]string{}
			for _, a := range x.answers {
				if a.Message.MessageID <= last[a.Message.DeviceID] {
					t.Errorf("answers of %s out of order", a.Message.DeviceID)
				}
				last[a.Message.DeviceID] = a.Message.MessageID
			}
			for device, n := range sent {
				if last := done[device]; last != n && (last != n-1 || n%7 != 0) {
					t.Errorf("%s: %d of %d", device, last, n)
				}
			}
		})
	}
	if died == 0 {
		t.Error("no message was given up for panics: the test does not test that")
	}
}
