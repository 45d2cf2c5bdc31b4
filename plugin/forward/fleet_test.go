package forward

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Fleets of any size, of which the backend refuses every device for hours: nothing is given up.
func TestFleetsRefused(t *testing.T) {
	for _, devices := range []int{1, 2, 7, 8, 9, 40} {
		for _, batch := range []int{1, 10} {
			for _, unordered := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					var status atomic.Int32
					status.Store(200)
					cfg := batches(Config{Batch: batch, Unordered: unordered, MaxAge: 72 * time.Hour}, func([]Message) reply {
						time.Sleep(time.Millisecond)
						return reply{status: int(status.Load())}
					})
					x := start(t, cfg)
					x.store.AnyOrder = unordered
					for n := range 3 * devices {
						x.enqueue(message(fmt.Sprint("d", n%devices), n))
					}
					time.Sleep(time.Minute)
					status.Store(404)
					for n := range 20 * devices {
						x.enqueue(message(fmt.Sprint("d", n%devices), 1000+n))
					}
					time.Sleep(6 * time.Hour)
					if s := x.Stats(); s.Dead != 0 || !s.Refusing {
						t.Errorf("%d devices, batch %d: %+v", devices, batch, s)
					}
					status.Store(200)
					time.Sleep(2 * time.Minute)
					if s := x.Stats(); s.Pending != 0 || s.Dead != 0 || s.Refusing {
						t.Errorf("%d devices, batch %d, healed: %+v", devices, batch, s)
					}
				})
			}
		}
	}
}

// A 401 for one device alone is kept like every other, and is no sign that the others are refused: they do not wait, and
// the log does not say again and again that they are.
func TestOneDeviceUnauthorized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var denied atomic.Bool
		denied.Store(true)
		x := start(t, with(func(m *Message) reply {
			time.Sleep(10 * time.Millisecond)
			if denied.Load() && m.DeviceID == "denied" {
				return reply{status: 401}
			}
			return reply{status: 200}
		}))
		x.enqueue(message("denied", 1))
		x.enqueue(message("denied", 2))
		refusing := 0
		for n := range 3600 {
			x.enqueue(message("other", n))
			time.Sleep(time.Second)
			if s := x.Stats(); s.Refusing {
				refusing++
			}
		}
		if s := x.Stats(); s.Dead != 0 || s.Pending != 2 || s.Delivered != 3600 || refusing > 36 {
			t.Errorf("refusing %d of 3600 s: %+v", refusing, s)
		}
		if n := x.log.Count("refusing every message"); n > 15 {
			t.Errorf("%d lines", n)
		}
		if x.log.Count("refuses a device and takes messages of others", "device=denied", "status=401") == 0 {
			t.Errorf("log:\n%.2000s", x.log)
		}
		denied.Store(false)
		time.Sleep(time.Minute)
		if s := x.Stats(); s.Pending != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// One message that gets 403, 404 or a redirect dies alone, however many devices are in its batch, and its neighbours are
// delivered.
func TestBatchIsolatesDoubtful(t *testing.T) {
	for _, devices := range []int{2, 7, 8, 20, 100} {
		synctest.Test(t, func(t *testing.T) {
			cfg := batches(Config{Batch: 100, MaxAge: 72 * time.Hour}, func(ms []Message) reply {
				if slices.ContainsFunc(ms, func(m Message) bool { return m.DeviceID == "d1" }) {
					return reply{status: 403}
				}
				return reply{status: 200}
			})
			x := start(t, cfg)
			for n := range devices {
				x.enqueue(message(fmt.Sprint("d", n), 1))
			}
			time.Sleep(10 * time.Second)
			if s := x.Stats(); s.Delivered != uint64(devices-1) || s.Refusing {
				t.Errorf("%d devices: %+v", devices, s)
			}
			time.Sleep(5 * time.Minute)
			if got := x.store.Graves(); !strings.HasPrefix(got, "d1/1 refused 403 ") || x.Stats().Dead != 1 {
				t.Errorf("%d devices: %q, %+v", devices, got, x.Stats())
			}
		})
	}
}

// The same when the backend refused everything until then, and nothing new comes.
func TestBatchIsolatesDoubtfulAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := batches(Config{Batch: 100, MaxAge: 72 * time.Hour}, func(ms []Message) reply {
			if slices.ContainsFunc(ms, func(m Message) bool { return m.DeviceID == "d1" }) {
				return reply{status: 404}
			}
			return reply{status: 200}
		})
		cfg.Standing = Standing{Refusing: true, Status: 404, Since: time.Now()}
		x := start(t, cfg)
		for n := range 20 {
			x.enqueue(message(fmt.Sprint("d", n), 1))
		}
		time.Sleep(10 * time.Minute)
		if s := x.Stats(); s.Delivered != 19 || s.Dead != 1 || s.Refusing {
			t.Errorf("%+v", s)
		}
	})
}

// Devices to which nothing is sent are none of "all", nor those that are registered no more.
func TestStoppedDevicesAreNotAsked(t *testing.T) {
	for _, how := range []string{"gone", "blocked", "removed"} {
		synctest.Test(t, func(t *testing.T) {
			status := 200
			cfg := with(func(m *Message) reply {
				if m.DeviceID == "c" && number(m) == "2" {
					return reply{status: map[string]int{"gone": 410, "blocked": 422, "removed": 200}[how]}
				}
				return reply{status: status}
			})
			var registered atomic.Int32
			registered.Store(3)
			cfg.Registered = func() int { return int(registered.Load()) }
			x := start(t, cfg)
			x.store.failWith(func(operation string, _ *Message) error {
				if operation == "dead" {
					return ErrNoRoom
				}
				return nil
			})
			for _, device := range []string{"a", "b", "c"} {
				x.enqueue(message(device, 1))
			}
			synctest.Wait()
			x.enqueue(message("c", 2))
			if how == "removed" {
				registered.Store(2)
			} else {
				x.enqueue(message("c", 3))
			}
			synctest.Wait()
			status = 404
			x.enqueue(message("a", 4))
			x.enqueue(message("b", 4))
			time.Sleep(time.Hour)
			if s := x.Stats(); s.Dead != 0 || !s.Refusing {
				t.Errorf("%s: %+v", how, s)
			}
		})
	}
}

// Retry-After does not stretch the five minutes.
func TestDoubtsDespiteRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, with(func(m *Message) reply {
			if m.DeviceID == "unknown" {
				return reply{status: 404, retryAfter: time.Hour}
			}
			return reply{status: 200}
		}))
		x.enqueue(message("a", 1))
		x.enqueue(message("b", 1))
		synctest.Wait()
		x.enqueue(message("unknown", 1))
		time.Sleep(6 * time.Minute)
		if s := x.Stats(); s.Dead != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Without order, one message of the only device that is refused again and again while others are taken is given up, and
// does not slow them down.
func TestOnlyDeviceUnordered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(m *Message) reply {
			if number(m) == "7" {
				return reply{status: 404}
			}
			return reply{status: 200}
		})
		cfg.Unordered = true
		x := start(t, cfg)
		x.store.AnyOrder = true
		for n := range 600 {
			x.enqueue(message("gateway", n))
			time.Sleep(time.Second)
		}
		if s := x.Stats(); s.Delivered != 599 || s.Dead != 1 || s.Refusing {
			t.Errorf("%+v", s)
		}
	})
}

// Eight devices that the backend does not know, and one that it does and that is heard of once a minute: the messages of
// the eight are given up in the end.
func TestManyUnknownDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(m *Message) reply {
			if strings.HasPrefix(m.DeviceID, "unknown") {
				return reply{status: 404}
			}
			return reply{status: 200}
		})
		cfg.MaxAge = 72 * time.Hour
		x := start(t, cfg)
		for n := range 8 {
			x.enqueue(message(fmt.Sprint("unknown", n), n))
		}
		for n := range 60 {
			x.enqueue(message("known", n))
			time.Sleep(time.Minute)
		}
		if s := x.Stats(); s.Delivered != 60 || s.Dead < 7 {
			t.Errorf("%+v", s)
		}
	})
}

// A backend that is in order for twenty seconds an hour, and refuses everything else: nothing is given up of devices that
// send every minute.
func TestBackendRarelyInOrder(t *testing.T) {
	for _, devices := range []int{1, 3, 9, 30} {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			cfg := with(func(*Message) reply {
				time.Sleep(20 * time.Millisecond)
				if time.Since(begun)%time.Hour < 20*time.Second {
					return reply{status: 200}
				}
				return reply{status: 404}
			})
			cfg.MaxAge = 72 * time.Hour
			x := start(t, cfg)
			for minute := range 12 * 60 {
				for n := range devices {
					x.enqueue(message(fmt.Sprint("d", n), minute))
				}
				time.Sleep(time.Minute)
			}
			if s := x.Stats(); s.Dead != 0 || s.Delivered < uint64(devices)*11*60 {
				t.Errorf("%d devices: %+v", devices, s)
			}
		})
	}
}
