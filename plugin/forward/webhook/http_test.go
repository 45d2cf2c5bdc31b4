package webhook

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/ascii"
	"mosquitto-bouncer/plugin/backendurl"
	"mosquitto-bouncer/plugin/cloudevent"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/forwardtest"
	"mosquitto-bouncer/plugin/testkit"
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
	long.Topic = strings.Repeat("t", cloudevent.MaxSubject+1)
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

func isPrintable(s string) bool { return ascii.Visible(strings.ReplaceAll(s, " ", "")) }

func TestOutcomes(t *testing.T) {
	for _, test := range []struct {
		status   int
		response string // of the first request
		means    forward.Meaning
		retry    time.Duration
	}{
		{status: 200, means: forward.Taken},
		{status: 201, means: forward.Taken},
		{status: 299, means: forward.Taken},
		{status: 300, means: forward.Doubtful},
		{status: 301, means: forward.Doubtful},
		{status: 302, means: forward.Doubtful},
		{status: 304, means: forward.Doubtful},
		{status: 307, means: forward.Doubtful},
		{status: 308, means: forward.Doubtful},
		{status: 400, means: forward.Refused},
		{status: 401, means: forward.RefusesAll},
		{status: 403, means: forward.Doubtful},
		{status: 405, means: forward.RefusesAll},
		{status: 407, means: forward.RefusesAll},
		{status: 404, means: forward.Doubtful},
		{status: 409, means: forward.Refused},
		{status: 410, means: forward.Gone},
		{status: 413, means: forward.Refused},
		{status: 422, means: forward.Refused},
		{status: 499, means: forward.Refused},
		{status: 408, means: forward.Failed},
		{status: 425, means: forward.Failed},
		{status: 429, means: forward.Failed, retry: 7 * time.Second},
		{status: 500, means: forward.Failed},
		{status: 502, means: forward.Failed},
		{status: 503, means: forward.Failed, retry: 7 * time.Second},
		{status: 504, means: forward.Failed},
		{status: 600, means: forward.Failed},
		{status: 200, response: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", means: forward.Failed},
		{status: 202, response: "HTTP/1.1 202 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", means: forward.Failed},
		{status: 400, response: "HTTP/1.1 400 No\r\nContent-Length: 10\r\n\r\n{", means: forward.Refused},
		{response: "HTTP/1.1 20", means: forward.Failed},
		{response: "garbage\r\n", means: forward.Failed},
		{response: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHead) + "\r\n\r\n ", means: forward.Failed},
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
			target, err := backendurl.Parse(url + "/first")
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
			if r := courier.send(); meaningOf(r.status, r.err == nil, nil) != forward.Failed || r.err == nil {
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
	if n := x.log.Count("level=WARN", `msg="message is dead" device=a message_id=550e8400-e29b-41d4-a716-000000000002 reason=refused status=422`); n != 1 {
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
	for i, l := range x.store.Letters {
		if l.DiedAt.IsZero() {
			t.Errorf("%d: it never died", i+1)
		}
		l.DiedAt = time.Time{}
		if l.DeadLetter != (forwardtest.DeadLetter{Reason: forward.ReasonRefused, Status: 422, Excerpt: want[i], Attempts: 1}) {
			t.Errorf("%d: %+v", i+1, l.DeadLetter)
		}
	}
	if len(x.store.Letters) != len(want) {
		t.Errorf("%d dead letters", len(x.store.Letters))
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
	if x.log.Count("backend does not take messages, retrying", "device=a") != 1 || x.log.Count("backend takes messages again") != 1 {
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
		testkit.Eventually(t, "delivery", func() bool { return x.Stats().Delivered == uint64(n+1) })
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
	if x.log.Count("retrying", `error="no answer within 50ms (backend.timeout)"`) != 1 {
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
	if x.log.Count("backend's answer dropped", "message_id=", "longer than 65536 bytes") != 2 ||
		x.log.Count("backend's answer dropped", "gzip") != 1 {
		t.Errorf("log:\n%s", x.log)
	}
}

func (s *conns) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}
