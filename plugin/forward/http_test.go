package forward

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

func backend(t testing.TB, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func TestRequest(t *testing.T) {
	type request struct {
		method, uri, body string
		header            http.Header
	}
	var mu sync.Mutex
	var got []request
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, request{r.Method, r.RequestURI, string(body), r.Header})
	})
	x := start(t, Config{URL: s.URL + "/device/{device_id}/data?v=1", Version: "0.1.0", BearerToken: []byte("s3cret")})
	payloads := []string{`0`, `{}`, `""`, `22.0`, `{"temperature":22.5, "humidity":60}`, "\"\u00e9 \\u00e9 \U0001F321\"",
		`"` + strings.Repeat("x", 70000) + `"`}
	for _, p := range payloads {
		m := message("sensor_001", 1)
		m.MessageID = "550E8400-E29B-41D4-A716-446655440000"
		m.Payload = []byte(p)
		x.enqueue(m)
	}
	if s := x.drain(); int(s.Delivered) != len(payloads) || s.Retries != 0 {
		t.Fatalf("%+v", s)
	}
	if len(x.answers) != 0 {
		t.Errorf("%d answers to empty bodies", len(x.answers))
	}
	for i, r := range got {
		if r.method != "POST" || r.uri != "/device/sensor_001/data?v=1" || r.body != payloads[i] {
			t.Errorf("%s %s %.80q, want payload %.80q", r.method, r.uri, r.body, payloads[i])
		}
		want := http.Header{
			"Accept-Encoding": {"identity"},
			"Authorization":   {"Bearer s3cret"},
			"Ce-Id":           {"550e8400-e29b-41d4-a716-446655440000"},
			"Ce-Source":       {"/devices/sensor_001"},
			"Ce-Specversion":  {"1.0"},
			"Ce-Subject":      {"device/sensor_001/data"},
			"Ce-Time":         {"2024-09-30T16:00:00Z"},
			"Ce-Type":         {"mosquitto-bouncer.message.v1"},
			"Content-Length":  {fmt.Sprint(len(payloads[i]))},
			"Content-Type":    {"application/json"},
			"Idempotency-Key": {`"sensor_001:550e8400-e29b-41d4-a716-446655440000"`},
			"User-Agent":      {"mosquitto-bouncer/0.1.0"},
		}
		if !maps.EqualFunc(r.header, want, slices.Equal) {
			t.Errorf("header %v, want %v", r.header, want)
		}
	}
	if strings.Contains(x.log.String(), "s3cret") {
		t.Error("the log tells the token")
	}
}

// rawBackend answers every request with the response and hands out the bytes it was sent.
func rawBackend(t *testing.T, response func(n int) string) (url string, requests <-chan string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan string, 100)
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := []net.Conn{}
	n := 0
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				var raw bytes.Buffer
				br := bufio.NewReader(io.TeeReader(c, &raw))
				for {
					raw.Reset()
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					io.Copy(io.Discard, r.Body)
					ch <- raw.String()
					mu.Lock()
					n++
					answer := response(n)
					mu.Unlock()
					io.WriteString(c, answer)
					if !strings.HasSuffix(answer, "\r\n\r\n") { // a broken one
						c.(*net.TCPConn).SetLinger(0)
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "http://" + l.Addr().String(), ch
}

func TestHeadersAreSafe(t *testing.T) {
	const ok = "HTTP/1.1 204 No Content\r\n\r\n"
	url, requests := rawBackend(t, func(int) string { return ok })
	x := start(t, Config{URL: url + "/{device_id}", Concurrency: 1})
	evil := "a\r\nEvil: 1\r\n\r\nGET /x HTTP/1.1\r\n\x00\x7f\"\\%\u00e9 b"
	m := message(evil, 1)
	m.MessageID, m.Topic, m.Timestamp = evil, evil, -1<<40
	x.enqueue(m)
	long := message("b", 2)
	long.Topic = strings.Repeat("t", maxSubject+1)
	x.enqueue(long)
	x.drain()

	head, body, _ := strings.Cut(<-requests, "\r\n\r\n")
	if body != `{"n":1}` {
		t.Errorf("body %q", body)
	}
	names := []string{}
	for line := range strings.SplitSeq(head, "\r\n") {
		if !isPrintable(line) {
			t.Errorf("header line %q", line)
		}
		name, _, _ := strings.Cut(line, ":")
		names = append(names, name)
	}
	slices.Sort(names[1:])
	want := "Accept-Encoding Ce-Id Ce-Source Ce-Specversion Ce-Subject Ce-Time Ce-Type Content-Length Content-Type " +
		"Host Idempotency-Key User-Agent"
	if got := strings.Join(names[1:], " "); got != want {
		t.Errorf("headers %s\nwant %s", got, want)
	}
	const escaped = `a%0D%0AEvil:%201%0D%0A%0D%0AGET%20/x%20HTTP/1.1%0D%0A%00%7F%22%5C%25%C3%A9%20b`
	for _, line := range []string{
		"\r\nCe-Source: /devices/" + escaped + "\r\n",
		"\r\nCe-Subject: " + escaped + "\r\n",
	} {
		if !strings.Contains(head+"\r\n", line) {
			t.Errorf("no %q in %q", line, head)
		}
	}
	if second := <-requests; strings.Contains(second, "Ce-Subject") {
		t.Errorf("a subject beyond the limit, or the last message's: %.300q", second)
	}
}

func isPrintable(s string) bool { return visible(strings.ReplaceAll(s, " ", "")) }

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

func TestOutcomes(t *testing.T) {
	for _, test := range []struct {
		status   int
		response string // of the first request
		means    meaning
		retry    time.Duration
	}{
		{status: 200, means: meansTaken},
		{status: 201, means: meansTaken},
		{status: 299, means: meansTaken},
		{status: 300, means: meansDoubtful},
		{status: 301, means: meansDoubtful},
		{status: 302, means: meansDoubtful},
		{status: 304, means: meansDoubtful},
		{status: 307, means: meansDoubtful},
		{status: 308, means: meansDoubtful},
		{status: 400, means: meansRefused},
		{status: 401, means: meansShut},
		{status: 403, means: meansDoubtful},
		{status: 405, means: meansShut},
		{status: 407, means: meansShut},
		{status: 404, means: meansDoubtful},
		{status: 409, means: meansRefused},
		{status: 410, means: meansGone},
		{status: 413, means: meansRefused},
		{status: 422, means: meansRefused},
		{status: 499, means: meansRefused},
		{status: 408, means: meansFailed},
		{status: 425, means: meansFailed},
		{status: 429, means: meansFailed, retry: 7 * time.Second},
		{status: 500, means: meansFailed},
		{status: 502, means: meansFailed},
		{status: 503, means: meansFailed, retry: 7 * time.Second},
		{status: 504, means: meansFailed},
		{status: 600, means: meansFailed},
		{status: 200, response: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", means: meansFailed},
		{status: 202, response: "HTTP/1.1 202 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", means: meansFailed},
		{status: 400, response: "HTTP/1.1 400 No\r\nContent-Length: 10\r\n\r\n{", means: meansRefused},
		{response: "HTTP/1.1 20", means: meansFailed},
		{response: "garbage\r\n", means: meansFailed},
		{response: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHead) + "\r\n\r\n ", means: meansFailed},
	} {
		response := test.response
		if response == "" {
			response = fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: 0\r\nLocation: /other\r\n", test.status)
			if test.retry != 0 {
				response += fmt.Sprintf("Retry-After: %d\r\n", test.retry/time.Second)
			}
			response += "\r\n"
		}
		t.Run(fmt.Sprintf("%.30q", response), func(t *testing.T) {
			url, requests := rawBackend(t, func(int) string { return response })
			target, err := parseTarget(url + "/first")
			if err != nil {
				t.Fatal(err)
			}
			c, err := newClient(Config{Timeout: 5 * time.Second, Concurrency: 1, idle: 50 * time.Millisecond}, target)
			if err != nil {
				t.Fatal(err)
			}
			m := message("a", 1)
			courier := c.courier()
			courier.pack(&m)
			r := courier.send()
			if meaningOf(r.status, r.err == nil, nil) != test.means || r.retryAfter != test.retry {
				t.Errorf("%+v: want %d, retry after %v", r, test.means, test.retry)
			}
			if test.status != 0 && test.response == "" && (r.status != test.status || r.err != nil) {
				t.Errorf("%+v", r)
			}
			if !strings.HasPrefix(<-requests, "POST /first ") {
				t.Error("not the first request")
			}
			if len(requests) > 0 && r.err == nil {
				t.Errorf("redirect followed, or repeated: %q", <-requests)
			}
			c.hangUp()
			courier.pack(&m)
			if r := courier.send(); meaningOf(r.status, r.err == nil, nil) != meansFailed || r.err == nil {
				t.Errorf("after hanging up: %+v", r)
			}
			if c.conns.len() != 0 || c.http.ConnsCount() != 0 {
				t.Errorf("%d connections known, fasthttp counts %d", c.conns.len(), c.http.ConnsCount())
			}
		})
	}
}

func TestPoisonHoldsNobody(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Header.Get("Ce-Id"), "2") {
			http.Error(w, "no", http.StatusUnprocessableEntity)
		}
	})
	x := start(t, Config{URL: s.URL})
	for n := range 3 {
		x.enqueue(message("a", n+1))
	}
	if s := x.drain(); s.Delivered != 2 || s.Dead != 1 || s.Retries != 0 || s.AnswersDropped != 0 {
		t.Errorf("%+v", s)
	}
	if n := x.log.count("level=WARN", `msg="message is dead" device=a message_id=550e8400-e29b-41d4-a716-000000000002 reason=refused status=422`); n != 1 {
		t.Errorf("log:\n%s", x.log)
	}
	if strings.Contains(x.log.String(), `{\"n\"`) || len(x.answers) != 0 {
		t.Errorf("payload in the log, or an answer:\n%s", x.log)
	}
}

func TestExcerpt(t *testing.T) {
	body := strings.Repeat("0123456789", 200)
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		number := r.Header.Get("Ce-Id")[35:]
		if number == "2" {
			w.Header().Set("Content-Encoding", "gzip")
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		switch number {
		case "1":
			io.WriteString(w, "no \"temperature\"\n")
		case "2":
			io.WriteString(w, "zzz")
		case "3":
			io.WriteString(w, body)
		case "4":
			io.WriteString(w, strings.Repeat("x", maxExcerpt-1)+"\u00e9")
		case "5":
			io.WriteString(w, "\xff\xfe\u00e9\x00")
		}
	})
	x := start(t, Config{URL: s.URL, Concurrency: 1})
	for n := range 6 {
		x.enqueue(message("a", n+1))
	}
	x.drain()
	want := []string{"no \"temperature\"\n", "", body[:maxExcerpt], strings.Repeat("x", maxExcerpt-1) + "?", "?\u00e9\x00", ""}
	for i, l := range x.store.letters {
		if l.DiedAt.IsZero() {
			t.Errorf("%d: it never died", i+1)
		}
		l.DiedAt = time.Time{}
		if l.DeadLetter != (DeadLetter{Reason: ReasonRefused, Status: 422, Excerpt: want[i], Attempts: 1}) {
			t.Errorf("%d: %+v", i+1, l.DeadLetter)
		}
	}
	if len(x.store.letters) != len(want) {
		t.Errorf("%d dead letters", len(x.store.letters))
	}
}

func TestRedirectNotFollowed(t *testing.T) {
	var elsewhere atomic.Int32
	other := backend(t, func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	x := start(t, Config{URL: s.URL, BearerToken: []byte("s3cret"), FatalStatuses: []int{307}})
	x.enqueue(message("a", 1))
	if s := x.drain(); s.Dead != 1 || elsewhere.Load() != 0 {
		t.Errorf("%+v, %d requests elsewhere", s, elsewhere.Load())
	}
}

func TestResetsMidResponse(t *testing.T) {
	url, requests := rawBackend(t, func(n int) string {
		if n <= 2 {
			return "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":"
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
	})
	x := start(t, Config{URL: url})
	x.enqueue(message("a", 1))
	if s := x.drain(); s.Delivered != 1 || len(x.answers) != 1 || string(x.answers[0].Body) != "\r\n\r\n" {
		t.Errorf("%+v %v", s, x.answers)
	}
	if x.log.count("backend does not take messages, retrying", "device=a") != 1 || x.log.count("backend takes messages again") != 1 {
		t.Errorf("log:\n%s", x.log)
	}
	keys := map[string]bool{}
	for len(requests) > 0 {
		_, key, _ := strings.Cut(<-requests, "Idempotency-Key: ")
		key, _, _ = strings.Cut(key, "\r\n")
		keys[key] = true
	}
	if len(keys) != 1 {
		t.Errorf("keys %v, want one", keys)
	}
}

// The server closes an idle connection; the next message goes out at once nevertheless, on a new one.
func TestStaleKeepAlive(t *testing.T) {
	var opened atomic.Int32
	closed := make(chan struct{}, 10)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.IdleTimeout = 20 * time.Millisecond
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			closed <- struct{}{}
		}
	}
	s.Start()
	defer s.Close()
	x := start(t, Config{URL: s.URL, Concurrency: 1, idle: time.Second})
	// So that the client only finds out when it writes or reads.
	for n := range 3 {
		x.enqueue(message("a", n+1))
		eventually(t, "delivery", func() bool { return x.Stats().Delivered == uint64(n+1) })
		<-closed
	}
	if s := x.drain(); s.Delivered != 3 || s.Retries != 0 || opened.Load() != 3 {
		t.Errorf("%+v, %d connections; log:\n%s", s, opened.Load(), x.log)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	closed := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			close(closed)
		}
	}
	s.Start()
	defer s.Close()
	x := start(t, Config{URL: s.URL, Concurrency: 1, idle: 10 * time.Millisecond})
	x.enqueue(message("a", 1))
	<-closed
	if x.drain().Delivered != 1 {
		t.Error("not delivered")
	}
}

func TestSlowBackend(t *testing.T) {
	var n atomic.Int32
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			io.Copy(io.Discard, r.Body) // only then does the server notice that we hang up
			<-r.Context().Done()
		}
	})
	x := start(t, Config{URL: s.URL, Timeout: 50 * time.Millisecond})
	x.enqueue(message("a", 1))
	if s := x.drain(); s.Delivered != 1 || s.Retries < 1 {
		t.Errorf("%+v", s)
	}
	if x.log.count("retrying", `error="no answer within 50ms (backend.timeout)"`) != 1 {
		t.Errorf("log:\n%s", x.log)
	}
}

func TestAnswerLimits(t *testing.T) {
	body := bytes.Repeat([]byte("x"), maxAnswer)
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch id := r.Header.Get("Ce-Id"); id[len(id)-1] {
		case '1':
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			w.Write(body)
		case '2':
			w.Write(append(body, 'x'))
		case '3':
			w.Header().Set("Transfer-Encoding", "chunked")
			for range 3 {
				w.Write(body)
			}
		case '4':
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte("zzz"))
		case '5':
			w.Header()["Content-Type"] = nil
			w.Write([]byte("ok"))
		case '6':
			w.WriteHeader(http.StatusUnprocessableEntity)
			w.Write(append(body, 'x'))
		}
	})
	x := start(t, Config{URL: s.URL})
	for n := range 6 {
		x.enqueue(message("a", n+1))
	}
	if s := x.drain(); s.Delivered != 5 || s.Dead != 1 || s.AnswersDropped != 3 || s.Retries != 0 {
		t.Errorf("%+v", s)
	}
	if len(x.answers) != 2 || !bytes.Equal(x.answers[0].Body, body) || x.answers[0].Status != 201 ||
		x.answers[0].ContentType != "application/json" || string(x.answers[1].Body) != "ok" || x.answers[1].ContentType != "" {
		t.Errorf("%d answers: %.200v", len(x.answers), x.answers)
	}
	if x.log.count("backend's answer dropped", "message_id=", "longer than 65536 bytes") != 2 ||
		x.log.count("backend's answer dropped", "gzip") != 1 {
		t.Errorf("log:\n%s", x.log)
	}
}

func TestFull(t *testing.T) {
	release := make(chan struct{})
	x := start(t, Config{MaxPending: 3, URL: backend(t, func(http.ResponseWriter, *http.Request) { <-release }).URL})
	for _, device := range []string{"a", "b", "c"} {
		x.enqueue(message(device, 1))
	}
	for range 2 {
		if err := x.Enqueue(message("d", 1)); err != ErrFull {
			t.Errorf("%v, want ErrFull", err)
		}
	}
	if s := x.Stats(); s.Accepted != 3 || s.Pending != 3 || s.Lanes != 3 {
		t.Errorf("%+v", s)
	}
	release <- struct{}{}
	eventually(t, "room", func() bool { return x.Enqueue(message("d", 1)) == nil })
	close(release)
	if s := x.drain(); s.Delivered != 4 {
		t.Errorf("%+v", s)
	}
}

// TestOneDeviceLeavesRoom has a device send faster than the backend answers.
func TestOneDeviceLeavesRoom(t *testing.T) {
	one := message("a", 1)
	for name, cfg := range map[string]Config{
		"messages": {MaxPending: 10 * laneShare},
		"bytes":    {MaxBytes: int64(10 * laneShare * laneUnit * (len(one.Payload)/laneUnit + 1))},
	} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			cfg.URL = backend(t, func(http.ResponseWriter, *http.Request) { <-release }).URL
			x := start(t, cfg)
			sent := uint64(0)
			for x.Enqueue(one) == nil {
				sent++
				x.Stats() // has it looked at, which a worker may not have done yet
				if sent > 100 {
					t.Fatal("one device takes everything")
				}
			}
			if sent < 10 || sent > 11 { // one may be in flight
				t.Errorf("%d messages of one device, want a quarter of 40", sent)
			}
			if err := x.Enqueue(one); err != ErrShare {
				t.Errorf("more than a device's share: %v, want ErrShare", err)
			}
			x.enqueue(message("b", 1))
			close(release)
			eventually(t, "room", func() bool { return x.Enqueue(one) == nil })
			if s := x.drain(); s.Delivered != sent+2 || x.crowding.Load() != nil {
				t.Errorf("%+v", s)
			}
		})
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
	if err := x.Enqueue(message("a", 1)); err != ErrClosed {
		t.Errorf("Enqueue after Close: %v", err)
	}
	if err := x.Close(t.Context()); err != ErrClosed {
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
			eventually(t, "requests in flight", func() bool { return x.Stats().InFlight == 2 })
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		begun := time.Now()
		err := x.Close(ctx)
		if err == nil || err.Error() != "3 messages were not delivered: context deadline exceeded" {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(begun); d > closeGrace {
			t.Errorf("%s: Close took %v", name, d)
		}
		if s := x.Stats(); s.Pending != 3 || s.InFlight != 0 || s.Accepted != 3 {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestPanicInAnswer(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") })
	var log logBuffer
	var calls atomic.Int32
	store := newMemory(t)
	f, err := New(Config{URL: s.URL, idle: time.Millisecond}, store, func(Answer) {
		if calls.Add(1) == 1 {
			panic("callback went wrong")
		}
	}, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	f.Start(Counts{})
	f.Enqueue("a", store.add(message("a", 1)), 1)
	f.Enqueue("a", store.add(message("a", 2)), 1)
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := f.Stats(); s.Delivered != 2 || s.Retries != 0 || s.AnswersDropped != 1 || calls.Load() != 2 {
		t.Errorf("%+v, %d calls", s, calls.Load())
	}
	if log.count("handing over an answer panicked", `panic="callback went wrong"`, "stack=") != 1 {
		t.Errorf("log:\n%s", &log)
	}
}

// certificate makes a certificate; issuer nil: a CA.
func certificate(t testing.TB, name string, issuer *tls.Certificate) tls.Certificate {
	t.Helper()
	return certificateOf(t, name, issuer, 0)
}

// shifted makes a server's certificate whose time of validity is shifted.
func shifted(t testing.TB, issuer *tls.Certificate, by time.Duration) tls.Certificate {
	t.Helper()
	return certificateOf(t, "server", issuer, by)
}

func certificateOf(t testing.TB, name string, issuer *tls.Certificate, shift time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(shift - time.Hour), NotAfter: time.Now().Add(shift + time.Hour),
		IsCA: issuer == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := template, any(key)
	if issuer != nil {
		parent, signer = issuer.Leaf, issuer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestTLS(t *testing.T) {
	ca, foreign := certificate(t, "CA", nil), certificate(t, "foreign CA", nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	var client atomic.Value
	var resumed atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		client.Store(r.TLS.PeerCertificates[0].Subject.CommonName)
		if r.TLS.DidResume {
			resumed.Add(1)
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t, "server", &ca)}, ClientCAs: roots,
		ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.SetKeepAlivesEnabled(false)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()

	own := certificate(t, "gateway", &ca)
	x := start(t, Config{URL: s.URL, TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}})
	x.enqueue(message("a", 1))
	x.enqueue(message("a", 2))
	if s := x.drain(); s.Delivered != 2 || client.Load() != "gateway" || s.Retries != 0 {
		t.Errorf("%+v, client %v; log:\n%s", s, client.Load(), x.log)
	}
	if resumed.Load() != 1 {
		t.Errorf("%d sessions resumed, want 1", resumed.Load())
	}

	foreignRoots := x509.NewCertPool()
	foreignRoots.AddCert(foreign.Leaf)
	for want, cfg := range map[string]*tls.Config{
		`certificate is signed by unknown authority \"CN=CA\": name the CA`: {RootCAs: foreignRoots, Certificates: []tls.Certificate{own}},
		"certificate is for 127.0.0.1, not 127.0.0.2":                       {RootCAs: roots, Certificates: []tls.Certificate{own}, ServerName: "127.0.0.2"},
		"wants a client certificate: set":                                   {RootCAs: roots}, // TLS 1.3: the alert comes after the handshake
		"wants a client certificate":                                        {RootCAs: roots, MaxVersion: tls.VersionTLS12},
		"wants a client certificate of another CA":                          {RootCAs: roots, Certificates: []tls.Certificate{foreign}},
		"signed by unknown authority":                                       nil,
	} {
		x := start(t, Config{URL: s.URL, TLS: cfg})
		x.enqueue(message("a", 1))
		eventually(t, "a retry", func() bool { return x.Stats().Retries > 0 && x.log.count("retrying") > 0 })
		if x.log.count("retrying", want) != 1 || x.Stats().Delivered != 0 {
			t.Errorf("%s: %+v; log:\n%s", want, x.Stats(), x.log)
		}
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
				case ErrFull:
				case ErrClosed:
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
	eventually(t, "some messages", func() bool { return accepted.Load() > 100 })
	if err := x.Close(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	got := x.Stats()
	if got.Delivered != got.Accepted || got.Accepted > accepted.Load() || got.Accepted+4 < accepted.Load() {
		t.Errorf("%d accepted, %+v", accepted.Load(), got)
	}
}

func TestEnqueueAllocations(t *testing.T) {
	block := make(chan struct{})
	store := &endless{m: message("a", 1)}
	x, err := New(with(func(*Message) reply { <-block; return reply{status: 200} }), store, nil, (&logBuffer{}).logger())
	if err != nil {
		t.Fatal(err)
	}
	x.Start(Counts{})
	x.Enqueue("a", 1, 1)
	if n := testing.AllocsPerRun(1000, func() { x.Enqueue("a", 1, 1) }); n > 0.1 {
		t.Errorf("%v allocations", n)
	}
	close(block)
	if err := x.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// endless is a Store of one message again and again, to measure the forwarder alone.
type endless struct {
	m         Message
	delivered atomic.Uint64
}

func (s *endless) Load(_ uint64, m *Message) error {
	m.Payload = append(m.Payload, s.m.Payload...)
	m.MessageID, m.Timestamp, m.AcceptedAt, m.Topic = s.m.MessageID, s.m.Timestamp, s.m.AcceptedAt, s.m.Topic
	return nil
}
func (s *endless) Delivered(uint64)                      { s.delivered.Add(1) }
func (s *endless) Dead(string, uint64, DeadLetter) error { panic("dead") }

// BenchmarkForward measures messages from Enqueue to 2xx, client and server in one process.
func BenchmarkForward(b *testing.B) {
	run := func(b *testing.B, cfg Config) {
		store := &endless{m: message("", 1)}
		store.m.Payload = []byte(`{"temperature":22.5,"humidity":60,"status":"ok"}`)
		cfg.idle = 50 * time.Millisecond
		f, err := New(cfg, store, nil, (&logBuffer{}).logger())
		if err != nil {
			b.Fatal(err)
		}
		f.Start(Counts{})
		const devices = 100
		var ids [devices]string
		for d := range ids {
			ids[d] = fmt.Sprintf("sensor_%03d", d)
		}
		b.ReportAllocs()
		b.ResetTimer()
		for n := range b.N {
			f.Enqueue(ids[n%devices], uint64(n), len(store.m.Payload))
			if n%10 == 0 {
				f.Dispatch()
			}
		}
		if err := f.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if n := store.delivered.Load(); n != uint64(b.N) {
			b.Fatalf("%d of %d delivered", n, b.N)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	}
	ways := map[string]func(url string) Config{
		"single": func(url string) Config { return Config{URL: url + "/device/{device_id}/data"} },
		"signed": func(url string) Config {
			return Config{URL: url + "/device/{device_id}/data", SigningSecret: []byte("0123456789abcdef")}
		},
		"batch100": func(url string) Config { return Config{URL: url + "/data", Batch: 100} },
	}
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		b.Run(name+"/nethttp", func(b *testing.B) {
			run(b, ways[name](backend(b, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }).URL))
		})
		b.Run(name+"/fasthttp", func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			s := &fasthttp.Server{Handler: func(*fasthttp.RequestCtx) {}, CloseOnShutdown: true}
			go s.Serve(l)
			defer s.Shutdown()
			run(b, ways[name]("http://"+l.Addr().String()))
		})
	}
}
