package forward

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestJudge(t *testing.T) {
	for _, test := range []struct {
		what string
		e    evidence
		want fate
	}{
		{"zero", evidence{}, retry},
		{"2xx", evidence{means: Taken, refusing: true}, delivered},
		{"410", evidence{means: Gone, together: true}, gone},
		{"422", evidence{means: Refused, refusing: true}, dead},
		{"422 to a batch", evidence{means: Refused, together: true}, split},
		{"401 to one of many", evidence{means: RefusesAll, refused: 1, devices: 100}, kept},
		{"401 to a batch", evidence{means: RefusesAll, together: true, refused: 1, devices: 100}, kept},
		{"404 to one of many", evidence{means: Doubtful, refused: 1, devices: 100, tries: 1}, doubted},
		{"404 to seven of many", evidence{means: Doubtful, refused: 7, devices: 8, tries: 1}, doubted},
		{"404 to eight of many", evidence{means: Doubtful, refused: 8, devices: 100, tries: 1}, kept},
		{"404 to all of three", evidence{means: Doubtful, refused: 3, devices: 3, tries: 1}, kept},
		{"404 to two of three", evidence{means: Doubtful, refused: 2, devices: 3, tries: 1}, doubted},
		{"404 to the only one", evidence{means: Doubtful, refused: 1, devices: 1, tries: 10}, kept},
		{"404 to one, while all are refused", evidence{means: Doubtful, refusing: true, refused: 1, devices: 100, tries: 10}, kept},
		{"404 for the ninth time", evidence{means: Doubtful, refused: 1, devices: 2, tries: 9, since: maxDoubtTime - 1}, doubted},
		{"404 for the tenth time", evidence{means: Doubtful, refused: 1, devices: 2, tries: 10}, dead},
		{"404 for five minutes", evidence{means: Doubtful, refused: 1, devices: 2, tries: 2, since: maxDoubtTime}, dead},
		{"404 to a batch", evidence{means: Doubtful, together: true, refused: 2, devices: 3, tries: 10}, split},
	} {
		if got := test.e.judge(); got != test.want {
			t.Errorf("%s: %d, want %d", test.what, got, test.want)
		}
	}
}

// A slow and simple model of what makes a refusal the backend's own state, against the bounded one.
func TestStandingModel(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		now := time.Unix(1e9, 0)
		var s standing
		s.init(Standing{})
		heard, since := map[string]bool{}, map[string]bool{} // ever answered; refused since the last 2xx
		devices := 1 + rnd.IntN(12)
		for step := range 500 {
			device := fmt.Sprint("d", rnd.IntN(devices))
			heard[device] = true
			now = now.Add(time.Second)
			if rnd.IntN(6) == 0 {
				since = map[string]bool{}
				if ended, was := s.took(device, now), s.refusing; ended && was {
					t.Fatal("still refusing")
				}
			} else {
				since[device] = true
				s.refuse(device, now)
			}
			model := len(since) >= min(standingDevices, len(heard))
			e := evidence{means: Doubtful, refused: len(s.refused), devices: len(s.heard)}
			if got := e.judge() == kept; len(since) > 0 && got != model {
				t.Fatalf("seed %d step %d: %v, want %v; refused %v of %v", seed, step, got, model, since, heard)
			}
			if len(s.heard) > standingDevices || len(s.refused) > standingDevices {
				t.Fatalf("%d heard, %d refused", len(s.heard), len(s.refused))
			}
			if rnd.IntN(20) == 0 { // a restart
				kept := s.snapshot()
				s = standing{}
				s.init(kept)
			}
		}
	}
}

// A device that is silent for a day is none of "all".
func TestStandingForgets(t *testing.T) {
	var s standing
	s.init(Standing{})
	now := time.Unix(1e9, 0)
	s.took("silent", now)
	now = now.Add(heardWithin + time.Second)
	s.refuse("a", now)
	if (evidence{means: Doubtful, refused: len(s.refused), devices: len(s.heard)}).judge() != kept {
		t.Errorf("%+v", s.snapshot())
	}
}

// A backend that refuses everybody: nothing is given up, one message at a time is tried, and when it takes messages again
// all are delivered. The log says the one and the other once, and only when it is so.
func TestBackendRefusesEverybody(t *testing.T) {
	for _, status := range []int{401, 405, 407, 403, 404, 301, 302, 308} {
		for _, batch := range []int{1, 5} {
			t.Run(fmt.Sprint(status, "/", batch), func(t *testing.T) { refusesEverybody(t, status, batch) })
		}
	}
}

func refusesEverybody(t *testing.T, status, batch int) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		requests, inFlight, most, healed := 0, 0, 0, false
		cfg := batches(Config{Batch: batch, Linger: time.Millisecond, MaxAge: 72 * time.Hour}, func([]Message) reply {
			mu.Lock()
			requests++
			if inFlight++; requests > 64+standingDevices {
				most = max(most, inFlight)
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			if inFlight--; healed {
				return reply{status: 200}
			}
			return reply{status: status}
		})
		x := start(t, cfg)
		for n := range 1000 {
			x.enqueue(message(fmt.Sprint("d", n%100), n))
		}
		time.Sleep(2 * time.Hour)
		s := x.Stats()
		if s.Dead != 0 || s.Delivered != 0 || !s.Refusing || s.Down || s.RefusingStatus != status || s.RefusingSince.IsZero() || most > 1 {
			t.Errorf("%+v, %d in flight", s, most)
		}
		if requests < 1000 || requests > 10000 {
			t.Errorf("%d requests in two hours", requests)
		}
		if n := x.log.Count("backend is refusing every message", fmt.Sprint("status=", status), "advice="); n < 100 || n > 121 {
			t.Errorf("%d lines in two hours:\n%.2000s", n, x.log)
		}
		if strings.Contains(x.log.String(), "takes messages again") || strings.Contains(x.log.String(), "answers again") {
			t.Error("the log says that the backend takes messages, which it does not")
		}
		if got := fmt.Sprint(x.Responses()); got != fmt.Sprintf("[{%d %d}]", status, requests-inFlight) {
			t.Error(got, requests)
		}
		mu.Lock()
		healed = true
		mu.Unlock()
		time.Sleep(time.Minute)
		if s := x.Stats(); s.Delivered != 1000 || s.Refusing || s.RefusingStatus != 0 {
			t.Errorf("healed: %+v", s)
		}
		if n := x.log.Count("backend takes messages again", "after=2h0m"); n != 1 {
			t.Errorf("%d lines of recovery", n)
		}
	})
}

// One device that the backend does not know, among others that it does: ten tries within five minutes, and the others
// do not wait.
func TestBackendRefusesOneDevice(t *testing.T) {
	for _, status := range []int{403, 404} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			x := start(t, with(func(m *Message) reply {
				if m.DeviceID == "unknown" {
					tries++
					return reply{status: status, excerpt: "no such device"}
				}
				return reply{status: 200}
			}))
			x.enqueue(message("a", 0))
			x.enqueue(message("b", 0))
			synctest.Wait()
			begun := time.Now()
			x.enqueue(message("unknown", 1))
			for n := 1; x.Stats().Dead == 0 && n < 1000; n++ {
				x.enqueue(message("a", n))
				time.Sleep(time.Second)
				if s := x.Stats(); s.Refusing || s.Down || s.Delivered < uint64(n)+1 {
					t.Fatalf("%+v", s)
				}
			}
			if d := time.Since(begun); d < time.Minute || d > 5*time.Minute || tries != 10 {
				t.Errorf("%d tries in %v", tries, d)
			}
			if got := x.store.Graves(); got != fmt.Sprintf("unknown/1 refused %d 10", status) || x.store.Letters[0].Excerpt != "no such device" {
				t.Error(got)
			}
			if n := x.log.Count("refuses a message; a few more attempts follow", "device=unknown"); n != 9 {
				t.Errorf("%d lines:\n%s", n, x.log)
			}
		})
	}
}

// What is known of the backend outlives a restart: nothing becomes a dead letter because it is forgotten, and one message
// asks whether the backend still refuses.
func TestRefusingOverRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var status atomic.Int32
		status.Store(404)
		backend := with(func(*Message) reply { time.Sleep(time.Second); return reply{status: int(status.Load())} })
		first := start(t, backend)
		for n := range 10 {
			first.enqueue(message(fmt.Sprint("d", n), 1))
		}
		time.Sleep(time.Minute)
		kept, version := first.Standing()
		if !kept.Refusing || kept.Status != 404 || len(kept.Refused) != 8 || len(kept.Heard) != 8 || version == 0 {
			t.Fatalf("%+v", kept)
		}
		backend.Standing = kept
		second := start(t, backend)
		for n := range 100 {
			second.enqueue(message(fmt.Sprint("e", n), 1))
		}
		synctest.Wait()
		if s := second.Stats(); !s.Refusing || s.InFlight != 1 || !s.RefusingSince.Equal(kept.Since) {
			t.Errorf("%+v", s)
		}
		time.Sleep(10 * time.Minute)
		if s := second.Stats(); s.Dead != 0 || !s.Refusing || s.InFlight > 1 {
			t.Errorf("%+v", s)
		}
		status.Store(204)
		time.Sleep(time.Minute)
		if s := second.Stats(); s.Delivered != 100 || s.Refusing {
			t.Errorf("%+v", s)
		}
		if n := second.log.Count("takes messages again"); n != 1 {
			t.Errorf("log:\n%s", second.log)
		}
	})
}

// A final refusal of one message is no sign that the backend takes others.
func TestRefusalIsNoRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var status atomic.Int32
		status.Store(500)
		x := start(t, with(func(*Message) reply { return reply{status: int(status.Load())} }))
		x.enqueue(message("a", 1))
		time.Sleep(10 * time.Second)
		status.Store(422)
		time.Sleep(time.Minute)
		if s := x.Stats(); s.Dead != 1 {
			t.Fatalf("%+v", s)
		}
		if x.log.Count("takes messages again") != 0 {
			t.Errorf("log:\n%s", x.log)
		}
		status.Store(200)
		x.enqueue(message("a", 2))
		synctest.Wait()
		if x.log.Count("takes messages again") != 1 {
			t.Errorf("log:\n%s", x.log)
		}
	})
}
