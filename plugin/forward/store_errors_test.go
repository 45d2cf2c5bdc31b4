package forward

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

var errDisk = errors.New("no space left on device")

// What the backend has refused stays first in its lane until the dead letter is stored, and is not sent again.
func TestDeadLetterIsStoredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace
		x := start(t, with(func(m *Message) reply {
			r.add(m)
			if number(m) == "2" {
				return reply{status: 422, excerpt: "temperature: too hot"}
			}
			return reply{status: 200}
		}))
		asked := 0
		x.store.failWith(func(operation string, m *Message) error {
			if operation != "dead" {
				return nil
			}
			switch asked++; {
			case asked == 3:
				panic("store went wrong")
			case asked < 10:
				return errDisk
			}
			return nil
		})
		for n := range 3 {
			x.enqueue(message("a", n+1))
		}
		x.enqueue(message("b", 1))
		synctest.Wait()
		if s := x.Stats(); s.Accepted != 4 || s.Delivered != 2 || s.Pending != 2 || s.Dead != 0 || s.StoreErrors != 1 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
		s := x.drain()
		if got := fmt.Sprint(r.sent); got != "[a/1 b/1 a/2 a/3]" && got != "[a/1 a/2 b/1 a/3]" && got != "[b/1 a/1 a/2 a/3]" {
			t.Error(got)
		}
		if s.StoreErrors != 9 || s.Retries != 0 || s.Down {
			t.Errorf("%+v", s)
		}
		if x.store.Graves() != "a/2 refused 422 1" || x.store.Letters[0].Excerpt != "temperature: too hot" {
			t.Errorf("%s: %+v", x.store.Graves(), x.store.Letters)
		}
		if x.log.Count("a message is held up, trying again", "device=a",
			`error="storing the dead letter of a message that is refused: no space left on device"`) != 8 ||
			x.log.Count(`msg="internal error, caught; please report it" where="storing a dead letter"`) != 1 || x.log.Count("message is dead", "message_id=550e8400-e29b-41d4-a716-000000000002", "reason=refused") != 1 {
			t.Errorf("log:\n%s", x.log)
		}
	})
}

func TestLoadFails(t *testing.T) {
	for _, batch := range []int{0, 10} {
		synctest.Test(t, func(t *testing.T) {
			var r trace
			cfg := Config{Batch: batch, Sink: &fake{reply: func(ms []Message) reply {
				for i := range ms {
					r.add(&ms[i])
				}
				return reply{status: 200}
			}}}
			x := start(t, cfg)
			failures := 0
			x.store.failWith(func(operation string, m *Message) error {
				switch {
				case operation != "load":
				case number(m) == "2" && m.DeviceID == "a" && failures < 5:
					failures++
					return errDisk
				case number(m) == "3" && m.DeviceID == "a":
					return fmt.Errorf("segment 7: %w", ErrUnreadable)
				}
				return nil
			})
			for n := range 4 {
				x.enqueue(message("a", n+1))
			}
			x.enqueue(message("b", 1))
			s := x.drain()
			errors := uint64(5)
			if batch > 1 {
				errors-- // the first ended a request, and was found again at the beginning of the next
			}
			if s.Delivered != 4 || s.Dead != 1 || s.StoreErrors != errors || s.Retries != 0 || s.Down {
				t.Errorf("%+v", s)
			}
			if got := fmt.Sprint(without(r.sent, "b/1")); got != "[a/1 a/2 a/4]" {
				t.Error(got)
			}
			if x.store.Graves() != "a/3 unreadable 0 0" {
				t.Error(x.store.Graves())
			}
			if x.log.Count("a message is held up, trying again", "device=a", `error="no space left on device"`) != int(errors) {
				t.Errorf("log:\n%s", x.log)
			}
		})
	}
}

func without(list []string, what string) (rest []string) {
	for _, s := range list {
		if s != what {
			rest = append(rest, s)
		}
	}
	return rest
}

func TestStorePanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, with(func(*Message) reply { return reply{status: 200} }))
		loads := 0
		x.store.failWith(func(operation string, m *Message) error {
			if operation == "load" {
				if loads++; loads < maxPanics || number(m) == "2" {
					panic("store went wrong")
				}
			}
			return nil
		})
		for n := range 3 {
			x.enqueue(message("a", n+1))
		}
		if s := x.drain(); s.Delivered != 2 || s.Dead != 1 || x.store.Graves() != "a/2 panic 0 0" {
			t.Errorf("%+v %s", s, x.store.Graves())
		}
	})
}

// Delivered may panic: the message counts as delivered, for a restart to sort out.
func TestDeliveredPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &clumsy{memory: newMemory(t)}
		f, err := New(with(func(*Message) reply { return reply{status: 200} }), store, nil, (&testkit.Log{}).Logger())
		if err != nil {
			t.Fatal(err)
		}
		f.Start(Counts{})
		f.Enqueue("a", store.add(message("a", 1)), 1)
		f.Enqueue("a", store.add(message("a", 2)), 1)
		if err := f.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if s := f.Stats(); s.Delivered != 2 || s.Pending != 0 {
			t.Errorf("%+v", s)
		}
	})
}

type clumsy struct{ *memory }

func (clumsy) Delivered(uint64) { panic("store went wrong") }

// The next message of a device is not sent, nor loaded, before the Store knows that the last one was delivered.
func TestDeliveredBeforeNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, with(func(*Message) reply { return reply{status: 200} }))
		var order []string
		x.store.failWith(func(operation string, m *Message) error {
			order = append(order, operation+number(m))
			if operation == "delivered" {
				time.Sleep(time.Second)
			}
			return nil
		})
		for n := range 3 {
			x.enqueue(message("a", n+1))
		}
		x.drain()
		if got := strings.Join(order, " "); got != "load1 delivered1 load2 delivered2 load3 delivered3" {
			t.Error(got)
		}
	})
}

func TestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory(t)
		f, err := New(with(func(m *Message) reply {
			if number(m) == "2" {
				return reply{status: 422}
			}
			return reply{status: 200}
		}), store, nil, (&testkit.Log{}).Logger())
		if err != nil {
			t.Fatal(err)
		}
		expect := func(accepted, delivered, dead uint64) {
			t.Helper()
			synctest.Wait()
			if s := f.Stats(); s.Accepted != accepted || s.Delivered != delivered || s.Dead != dead ||
				s.Pending != int(accepted-delivered-dead) {
				t.Errorf("%+v", s)
			}
		}
		f.Restore("a", store.add(message("a", 1)), 1)
		f.Restore("a", store.add(message("a", 2)), 1)
		expect(2, 0, 0)
		f.Start(Counts{Delivered: 1000, Dead: 1})
		expect(1003, 1001, 2)
		f.Enqueue("a", store.add(message("a", 3)), 1)
		expect(1004, 1001, 2) // no worker was woken; Stats looks at it
		expect(1004, 1002, 2)
		if err := f.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(m *Message) reply {
			switch number(m) {
			case "1":
				return reply{status: 400}
			case "2":
				time.Sleep(time.Millisecond)
			case "3":
				time.Sleep(2*time.Second + time.Nanosecond)
			}
			return reply{status: 200}
		})
		x := start(t, cfg)
		for n := range 4 {
			m := message("a", n+1)
			if n == 3 {
				m.AcceptedAt = m.AcceptedAt.Add(time.Hour) // the clock was set back
			}
			x.enqueue(m)
		}
		old := message("b", 5)
		old.AcceptedAt = old.AcceptedAt.Add(-100 * time.Hour)
		x.enqueue(old)
		h := x.drain().Latency
		got := map[string]uint64{}
		for i, n := range h.Counts {
			name := "more"
			if i < len(latencyBounds) {
				name = latencyBounds[i].String()
			}
			if n > 0 {
				got[name] = n
			}
		}
		if fmt.Sprint(got) != "map[1ms:2 5s:1 more:1]" {
			t.Error(got)
		}
		if want := 100*3600 + 2.002 + 0.001; h.Sum < want-0.01 || h.Sum > want+0.01 {
			t.Errorf("sum %v, want %v", h.Sum, want)
		}
	})
}
