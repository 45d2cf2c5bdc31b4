package forward

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mosquitto-bouncer/plugin/forward/forwardtest"
)

// One device uses all connections, and another that comes does not wait for its backlog.
func TestUnorderedUsesAllConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(*Message) reply { time.Sleep(100 * time.Millisecond); return reply{status: 200} })
		cfg.Unordered, cfg.Concurrency = true, 16
		x := start(t, cfg)
		for n := range 1600 {
			x.enqueue(message("gateway", n))
		}
		synctest.Wait()
		if s := x.Stats(); s.InFlight != 16 || s.Lanes != 1 {
			t.Errorf("%+v", s)
		}
		x.enqueue(message("other", 1))
		time.Sleep(250 * time.Millisecond)
		if q := x.Lanes("other", "gateway"); q[0].Messages != 0 || q[1].Messages < 1500 || q[1].Messages != x.Stats().Pending {
			t.Errorf("%+v", q)
		}
		time.Sleep(10 * time.Second) // 1601 requests of 0.1 s by 16
		if s := x.Stats(); s.Delivered != 1601 || s.Lanes != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Two devices with a backlog take turns.
func TestUnorderedIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace
		cfg := with(func(m *Message) reply { r.add(m); time.Sleep(time.Millisecond); return reply{status: 200} })
		cfg.Unordered, cfg.Concurrency = true, 1
		x := start(t, cfg)
		for n := range 4 {
			x.enqueue(message("a", n+1))
		}
		for n := range 3 {
			x.enqueue(message("b", n+1))
		}
		x.drain()
		if got := fmt.Sprint(r.sent); got != "[a/1 a/2 b/1 a/3 b/2 a/4 b/3]" && got != "[a/1 b/1 a/2 b/2 a/3 b/3 a/4]" {
			t.Error(got)
		}
	})
}

// One message that fails again and again holds up no other of its device. Where all of them fail, the device leaves half
// of the workers to the others.
func TestUnorderedFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hang atomic.Bool
		cfg := with(func(m *Message) reply {
			switch {
			case number(m) == "1":
				return reply{status: 500}
			case hang.Load() && m.DeviceID == "a":
				time.Sleep(5 * time.Second)
				return reply{err: errDown}
			}
			time.Sleep(time.Millisecond)
			return reply{status: 200}
		})
		cfg.Unordered, cfg.Concurrency, cfg.MaxAge = true, 4, time.Hour
		x := start(t, cfg)
		for n := range 100 {
			x.enqueue(message("a", n+1))
		}
		time.Sleep(10 * time.Second)
		if s := x.Stats(); s.Delivered != 99 || s.Pending != 1 {
			t.Fatalf("%+v", s)
		}
		hang.Store(true)
		for n := range 1000 {
			x.enqueue(message("a", n+1000))
		}
		time.Sleep(20 * time.Second)
		begun := time.Now()
		for n := range 1000 {
			x.enqueue(message("b", n+1000))
		}
		for x.Stats().Delivered < 1099 {
			time.Sleep(10 * time.Millisecond)
			x.mu.Lock()
			n := len(x.waiting)
			x.mu.Unlock()
			if n > maxAhead*4 {
				t.Fatalf("%d parcels wait", n)
			}
		}
		if d := time.Since(begun); d > 15*time.Second { // alone it takes 1 s of one worker
			t.Errorf("the other device's messages took %v", d)
		}
		hang.Store(false)
		time.Sleep(3 * time.Hour)
		if s := x.Stats(); s.Delivered != 2099 || s.Dead != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// 410 suspends the device once, with everything of it that is under way, and Resume continues with all of it.
func TestUnorderedGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status := 410
		calls := 0
		cfg := with(func(m *Message) reply {
			time.Sleep(time.Millisecond)
			if m.DeviceID == "b" {
				return reply{status: 200}
			}
			return reply{status: status}
		})
		cfg.Unordered, cfg.Concurrency = true, 8
		cfg.Gone = func(string, string) { calls++ }
		x := start(t, cfg)
		for n := range 100 {
			x.enqueue(message("a", n+1))
			x.enqueue(message("b", n+1))
		}
		time.Sleep(time.Second)
		x.enqueue(message("a", 101))
		synctest.Wait()
		if s := x.Stats(); calls != 1 || s.SuspendedDevices != 1 || s.Delivered != 100 || s.Pending != 101 || s.InFlight != 0 {
			t.Errorf("%d calls, %+v", calls, s)
		}
		if q := x.Slowest(1); len(q) != 1 || q[0].Messages != 101 || !q[0].Suspended || q[0].Oldest != forwardtest.FirstPosition {
			t.Errorf("%+v", q)
		}
		status = 200
		x.Resume("a")
		x.drain()
	})
}

// Whatever the backend and the Store do, without order: nothing is lost or sent twice after it was taken, the accounts add
// up, and nothing is left behind.
func TestUnorderedProperty(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 9))
			var mu sync.Mutex
			intn := func(n int) int { mu.Lock(); defer mu.Unlock(); return rnd.IntN(n) }
			taken := map[string]bool{}
			cfg := batches(Config{Batch: 1 + int(seed%2)*9, Linger: 20 * time.Millisecond, Concurrency: 1 + rnd.IntN(12)}, func(ms []Message) reply {
				time.Sleep(time.Duration(intn(200)) * time.Millisecond)
				switch intn(10) {
				case 0:
					return reply{err: errDown}
				case 1:
					return reply{status: 500 + intn(5)}
				case 2:
					return reply{status: 404}
				case 3:
					return reply{status: 400}
				case 4:
					panic("now and then")
				}
				mu.Lock()
				defer mu.Unlock()
				for _, m := range ms {
					if key := m.DeviceID + "/" + number(&m); taken[key] {
						t.Errorf("%s twice", key)
					} else {
						taken[key] = true
					}
				}
				return reply{status: 200}
			})
			cfg.Unordered = true
			x := start(t, cfg)
			x.store.failWith(func(operation string, m *Message) error {
				switch n := intn(30); {
				case operation == "delivered":
				case operation == "dead" && n < 5:
					return ErrNoRoom
				case n == 29:
					return errDisk
				}
				return nil
			})
			for n := range 2000 {
				x.enqueue(message(fmt.Sprint("d", intn(6)), n))
				if intn(50) == 0 {
					time.Sleep(time.Duration(intn(1000)) * time.Millisecond)
					for _, device := range x.Blocked(100) {
						x.Unblock(device)
					}
				}
				if s := x.Stats(); s.Accepted != s.Delivered+s.Dead+uint64(s.Pending) || s.Lanes > 6 {
					t.Fatalf("%+v", s)
				}
			}
			x.store.failWith(nil)
			for x.Stats().Pending > 0 {
				time.Sleep(time.Second)
				for _, device := range x.Blocked(100) {
					x.Unblock(device)
				}
			}
			s := x.drain()
			if s.Accepted != 2000 || s.BlockedDevices != 0 || x.retrying != 0 || x.outage.lanes != 0 || x.readyN != 0 || len(x.flights) != 0 {
				t.Errorf("seed %d: %+v retrying %d failing %d flights %d", seed, s, x.retrying, x.outage.lanes, len(x.flights))
			}
		})
	}
}

// A device whose dead letter has no room stops, the others continue, in a batch too, and Unblock continues in order.
func TestBlocked(t *testing.T) {
	for _, batch := range []int{1, 10} {
		synctest.Test(t, func(t *testing.T) {
			full := true
			x := start(t, batches(Config{Batch: batch, Linger: time.Millisecond}, func(ms []Message) reply {
				for _, m := range ms {
					if number(&m) == "2" && m.DeviceID == "a" {
						return reply{status: 422}
					}
				}
				return reply{status: 200}
			}))
			x.store.failWith(func(operation string, m *Message) error {
				if operation == "dead" && full {
					return fmt.Errorf("its share is taken: %w", ErrNoRoom)
				}
				return nil
			})
			for n := range 3 {
				x.enqueue(message("a", n+1))
				x.enqueue(message("b", n+1))
				x.enqueue(message("c", n+1))
			}
			time.Sleep(time.Hour)
			x.enqueue(message("c", 4))
			time.Sleep(time.Second)
			s := x.Stats()
			if s.Delivered != 8 || s.Pending != 2 || s.BlockedDevices != 1 || s.StoreErrors != 0 || fmt.Sprint(x.Blocked(9)) != "[a]" {
				t.Errorf("%+v", s)
			}
			if q := x.Lanes("a"); q[0].Messages != 2 || !q[0].Blocked {
				t.Errorf("%+v", q)
			}
			if n := x.log.Count("there is no room for its dead letter", "device=a", "its share is taken"); n != 1 {
				t.Errorf("log:\n%s", x.log)
			}
			x.Unblock("a") // without effect
			synctest.Wait()
			full = false
			x.Unblock("a")
			if s := x.drain(); s.Delivered != 9 || s.Dead != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}
