package forward

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// goneCalls notes the calls of Config.Gone.
type goneCalls struct {
	mu    sync.Mutex
	calls []string
}

func (g *goneCalls) call(device, url string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, device+" "+url)
}

func TestGoneDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace
		var g goneCalls
		up := false
		cfg := with(func(m *Message) reply {
			r.add(m)
			if strings.HasPrefix(m.DeviceID, "a") && !up {
				return reply{status: 410}
			}
			return reply{status: 200}
		})
		cfg.Gone, cfg.Concurrency = g.call, 1
		x := start(t, cfg)
		x.enqueue(message("a", 1))
		x.enqueue(message("b", 1))
		synctest.Wait()
		x.enqueue(message("a", 2))
		x.enqueue(message("b", 2))
		x.enqueue(message("a.x", 1))
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := fmt.Sprint(r.sent); got != "[a/1 b/1 b/2 a.x/1]" {
			t.Error(got)
		}
		if got := fmt.Sprint(g.calls); got != "[a http://backend/a a.x http://backend/a.x]" {
			t.Error(got)
		}
		if s := x.Stats(); s.Pending != 3 || s.Delivered != 2 || s.SuspendedDevices != 2 || s.Suspended || s.Down || s.Retries != 0 || s.Lanes != 2 {
			t.Errorf("%+v", s)
		}
		if x.Resume("b") || !x.Resume("a") {
			t.Error("Resume does not know what is suspended")
		}
		synctest.Wait()
		if len(g.calls) != 3 || !x.Resume("a") {
			t.Errorf("410 again: %v", g.calls)
		}
		synctest.Wait()
		up = true
		if !x.Resume("") || x.Resume("") {
			t.Error("Resume does not know what is suspended")
		}
		x.drain()
		if got := fmt.Sprint(r.sent[len(r.sent)-3:]); got != "[a.x/1 a/1 a/2]" && got != "[a/1 a.x/1 a/2]" && got != "[a/1 a/2 a.x/1]" {
			t.Error(got)
		}
		if x.log.Count("backend answered 410 Gone, the device's messages are kept until delivery is resumed", "device=a ", "url=http://backend/a") < 2 {
			t.Errorf("log:\n%s", x.log)
		}
	})
}

func TestGoneEverything(t *testing.T) {
	for _, batch := range []int{0, 4} {
		synctest.Test(t, func(t *testing.T) {
			var g goneCalls
			sent := 0
			up := false
			var mu sync.Mutex
			cfg := Config{Batch: batch, Concurrency: 4, Gone: g.call, Sink: &fake{reply: func(ms []Message) reply {
				time.Sleep(time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				sent++
				if !up {
					return reply{status: 410}
				}
				return reply{status: 200}
			}}}
			x := start(t, cfg)
			for n := range 100 {
				x.enqueue(message(fmt.Sprint("d", n%50), n+1))
			}
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			if sent != 4 || fmt.Sprint(g.calls) != "[ http://backend/in]" {
				t.Errorf("%d requests, Gone called with %q", sent, g.calls)
			}
			if s := x.Stats(); s.Pending != 100 || !s.Suspended || s.SuspendedDevices != 0 || s.InFlight != 0 {
				t.Errorf("%+v", s)
			}
			mu.Lock()
			up = true
			mu.Unlock()
			if x.Resume("d1") || !x.Resume("") || x.Resume("") {
				t.Error("Resume does not know what is suspended")
			}
			if s := x.drain(); s.Delivered != 100 {
				t.Errorf("%+v", s)
			}
			if x.log.Count("level=ERROR", "backend answered 410 Gone, all messages are kept until delivery is resumed", "url=http://backend/in") != 1 {
				t.Errorf("log:\n%s", x.log)
			}
		})
	}
}

// What was suspended in an earlier process stays so.
func TestSuspendedAtStart(t *testing.T) {
	for _, suspended := range []string{"", "a"} {
		synctest.Test(t, func(t *testing.T) {
			var r trace
			cfg := with(func(m *Message) reply { r.add(m); return reply{status: 200} })
			cfg.Suspended = []string{suspended}
			x := start(t, cfg)
			x.enqueue(message("a", 1))
			x.enqueue(message("a", 2))
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			if len(r.sent) != 0 {
				t.Error(r.sent)
			}
			if s := x.Stats(); s.Pending != 2 || s.Suspended != (suspended == "") || s.SuspendedDevices != len(suspended) {
				t.Errorf("%+v", s)
			}
			if !x.Resume(suspended) {
				t.Error("not suspended")
			}
			x.drain()
			if fmt.Sprint(r.sent) != "[a/1 a/2]" {
				t.Error(r.sent)
			}
		})
	}
}

// Close does not wait for what cannot be sent, but for the rest.
func TestCloseWhileSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := with(func(m *Message) reply {
			time.Sleep(time.Second)
			if m.DeviceID == "a" {
				return reply{status: 410}
			}
			return reply{status: 200}
		})
		cfg.Suspended = []string{"c"}
		x := start(t, cfg)
		x.enqueue(message("a", 1))
		x.enqueue(message("a", 2))
		for n := range 3 {
			x.enqueue(message("b", n+1))
		}
		x.enqueue(message("c", 1))
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		err := x.Close(ctx)
		if err == nil || err.Error() != "3 messages were not delivered: the backend answered 410 Gone; resume its delivery" {
			t.Error(err)
		}
		if d := time.Since(begun); d != 3*time.Second {
			t.Errorf("Close took %v", d)
		}
	})
}

func TestPanicInGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		cfg := with(func(*Message) reply {
			if calls == 0 {
				return reply{status: 410}
			}
			return reply{status: 200}
		})
		cfg.Gone = func(string, string) { calls++; panic("callback went wrong") }
		x := start(t, cfg)
		x.enqueue(message("a", 1))
		synctest.Wait()
		if s := x.Stats(); s.SuspendedDevices != 1 || s.Pending != 1 || calls != 1 {
			t.Errorf("%+v, %d calls", s, calls)
		}
		x.Resume("a")
		if s := x.drain(); s.Delivered != 1 || x.log.Count(`msg="internal error, caught; please report it" where="reporting that the backend is gone"`) != 1 {
			t.Errorf("%+v log:\n%s", s, x.log)
		}
	})
}
