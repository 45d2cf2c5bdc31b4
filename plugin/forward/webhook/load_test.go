package webhook

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/testkit"
)

func TestOrderAndConcurrency(t *testing.T) {
	const devices, each, concurrency = 20, 30, 5
	var mu sync.Mutex
	var inFlight, most int
	busy, last := map[string]bool{}, map[string]string{}
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		device, id := r.Header.Get("Ce-Source"), r.Header.Get("Ce-Id")
		mu.Lock()
		inFlight++
		most = max(most, inFlight)
		if busy[device] {
			t.Errorf("%s: two in flight", device)
		}
		if id <= last[device] {
			t.Errorf("%s: %s after %s", device, id, last[device])
		}
		busy[device], last[device] = true, id
		mu.Unlock()
		time.Sleep(time.Millisecond) // long enough to overlap
		mu.Lock()
		inFlight--
		busy[device] = false
		mu.Unlock()
		io.WriteString(w, id)
	})
	x := start(t, Config{URL: s.URL + "/{device_id}", Concurrency: concurrency})
	for n := range each {
		for d := range devices {
			x.enqueue(message(fmt.Sprint("d", d), n+1))
		}
	}
	if s := x.drain(); s.Delivered != devices*each || s.Retries != 0 {
		t.Errorf("%+v", s)
	}
	if most != concurrency {
		t.Errorf("%d requests at once, want %d", most, concurrency)
	}
	clear(last)
	for _, a := range x.answers {
		id := string(a.Body)
		if id != a.Message.MessageID || id <= last[a.Message.DeviceID] || a.Status != 200 || a.Latency <= 0 ||
			a.ContentType != "text/plain; charset=utf-8" {
			t.Errorf("answer %+v %s", a, id)
		}
		last[a.Message.DeviceID] = id
	}
	if len(x.answers) != devices*each {
		t.Errorf("%d answers", len(x.answers))
	}
}

func TestCloseDrains(t *testing.T) {
	s := backend(t, func(http.ResponseWriter, *http.Request) {})
	x := start(t, Config{URL: s.URL})
	for n := range 1000 {
		x.enqueue(message(fmt.Sprint("d", n%50), n))
	}
	if s := x.drain(); s.Delivered != 1000 {
		t.Errorf("%+v", s)
	}
	if err := x.Enqueue(message("a", 1)); err != forward.ErrClosed {
		t.Errorf("Enqueue after Close: %v", err)
	}
	if err := x.Close(t.Context()); err != forward.ErrClosed {
		t.Errorf("second Close: %v", err)
	}
}

func TestCloseGivesUp(t *testing.T) {
	dead := httptest.NewServer(nil)
	dead.Close()
	hanging, err := net.Listen("tcp", "127.0.0.1:0") // accepts, by its backlog, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	for name, url := range map[string]string{
		"dead":              dead.URL,
		"never answers":     "http://" + hanging.Addr().String(),
		"never shakes hand": "https://" + hanging.Addr().String(),
	} {
		x := start(t, Config{URL: url, Timeout: time.Minute, Concurrency: 2})
		for n := range 3 {
			x.enqueue(message(fmt.Sprint("d", n), 1))
		}
		if name != "dead" {
			testkit.Eventually(t, "requests in flight", func() bool { return x.Stats().InFlight == 2 })
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		begun := time.Now()
		err := x.Close(ctx)
		if err == nil || err.Error() != "3 messages were not delivered: context deadline exceeded" {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(begun); d > 2*time.Second {
			t.Errorf("%s: Close took %v", name, d)
		}
		if s := x.Stats(); s.Pending != 3 || s.InFlight != 0 || s.Accepted != 3 {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestPanicInAnswer(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") })
	var log testkit.Log
	var calls atomic.Int32
	store := newMemory(t)
	f, err := forwarder(Config{URL: s.URL, idle: time.Millisecond}, store, func(forward.Response) {
		if calls.Add(1) == 1 {
			panic("callback went wrong")
		}
	}, &log)
	if err != nil {
		t.Fatal(err)
	}
	f.Start(forward.Counts{})
	f.Enqueue("a", store.add(message("a", 1)), 1)
	f.Enqueue("a", store.add(message("a", 2)), 1)
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := f.Stats(); s.Delivered != 2 || s.Retries != 0 || s.AnswersDropped != 1 || calls.Load() != 2 {
		t.Errorf("%+v, %d calls", s, calls.Load())
	}
	if log.Count(`msg="internal error, caught; please report it" where="handing over an answer"`, `panic="callback went wrong"`, "device=a") != 1 {
		t.Errorf("log:\n%s", &log)
	}
}

func TestInvariantUnderLoad(t *testing.T) {
	var n atomic.Int32
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 10 {
		case 0:
			w.WriteHeader(http.StatusBadRequest)
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
		case 2:
			panic(http.ErrAbortHandler)
		default:
			io.WriteString(w, "ok")
		}
	})
	x := start(t, Config{URL: s.URL, Concurrency: 8})
	const producers, each = 4, 250
	var wg, watcher sync.WaitGroup
	stop := make(chan struct{})
	watcher.Go(func() {
		for {
			if s := x.Stats(); s.Accepted != s.Delivered+s.Dead+uint64(s.Pending) {
				t.Errorf("%+v", s)
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	})
	for p := range producers {
		wg.Go(func() {
			for n := range each {
				x.enqueue(message(fmt.Sprintf("d%d-%d", p, n%40), n))
			}
		})
	}
	wg.Wait()
	got := x.drain()
	close(stop)
	watcher.Wait()
	if got.Accepted != producers*each || got.Dead == 0 || got.Retries == 0 {
		t.Errorf("%+v", got)
	}
}

// Close while others enqueue: whatever was taken is accounted for, and what came too late is left to the Store.
func TestCloseRacesEnqueue(t *testing.T) {
	s := backend(t, func(http.ResponseWriter, *http.Request) {})
	x := start(t, Config{URL: s.URL})
	var accepted atomic.Uint64
	var wg sync.WaitGroup
	for p := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				switch err := x.Enqueue(message(fmt.Sprint("d", p), n)); err {
				case nil:
					accepted.Add(1)
				case forward.ErrFull:
				case forward.ErrClosed:
					return
				default:
					t.Error(err)
					return
				}
				if n%50 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	testkit.Eventually(t, "some messages", func() bool { return accepted.Load() > 100 })
	if err := x.Close(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	got := x.Stats()
	if got.Delivered != got.Accepted || got.Accepted > accepted.Load() || got.Accepted+4 < accepted.Load() {
		t.Errorf("%d accepted, %+v", accepted.Load(), got)
	}
}
