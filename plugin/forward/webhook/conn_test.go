package webhook

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/testkit"
)

// talk is one connection of a scripted backend.
type talk struct {
	net.Conn
	t       testing.TB
	r       *bufio.Reader
	tcp     *net.TCPConn
	device  string // of the request read last
	request int    // its number, from 1 on, over all connections
}

// say writes s at once.
func (c *talk) say(s string) { _, _ = io.WriteString(c, s) }

func (c *talk) answer(body string) {
	c.say("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// script is a backend that speaks raw bytes.
type script struct {
	url      string
	accepted atomic.Int32
	requests atomic.Int32
}

// backendOf starts a backend, over TLS if there is a configuration. answer is called for each request that has been read
// to its end; its result says whether another one is read from the connection.
func backendOf(t testing.TB, config *tls.Config, answer func(c *talk) bool) *script {
	t.Helper()
	return talking(t, config, func(s *script, c *talk) {
		for {
			r, err := http.ReadRequest(c.r)
			if err != nil {
				return
			}
			if _, err = io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			c.device = strings.TrimPrefix(r.Header.Get("Ce-Source"), "/devices/")
			c.request = int(s.requests.Add(1))
			if !answer(c) {
				return
			}
		}
	})
}

// talking starts a backend that leaves each connection to serve.
func talking(t testing.TB, config *tls.Config, serve func(s *script, c *talk)) *script {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{url: "http://" + l.Addr().String()}
	if config != nil {
		s.url = "https://" + l.Addr().String()
	}
	var open sync.Map
	var done sync.WaitGroup
	done.Go(func() {
		for {
			tcp, err := l.Accept()
			if err != nil {
				return
			}
			s.accepted.Add(1)
			open.Store(tcp, nil)
			c := &talk{Conn: tcp, t: t, tcp: tcp.(*net.TCPConn)}
			if config != nil {
				c.Conn = tls.Server(tcp, config)
			}
			c.r = bufio.NewReader(c.Conn)
			done.Go(func() {
				defer c.Close()
				serve(s, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		open.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		done.Wait()
	})
	return s
}

// ways are the kinds of connections: the backend's and the client's configuration.
func ways(t testing.TB) map[string][2]*tls.Config {
	ca := certificate(t, "CA", nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	own := []tls.Certificate{certificate(t, "server", &ca)}
	return map[string][2]*tls.Config{
		"plain":   {},
		"TLS 1.2": {{Certificates: own, MaxVersion: tls.VersionTLS12}, {RootCAs: roots}},
		"TLS 1.3": {{Certificates: own, MinVersion: tls.VersionTLS13}, {RootCAs: roots}},
	}
}

const stray = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"

// strays are what a backend sends beyond the answer to a device's request: at once behind it, or later.
var strays = map[string]struct {
	answer string // "": the usual
	now    string
	later  string
	then   string // "FIN", "end": what happens to the connection then
}{
	"a second answer at once":           {now: stray},
	"a second answer later":             {later: stray},
	"a piece of one":                    {later: "HTTP/1.1 200 OK\r\nContent-Le"},
	"one byte":                          {later: "H"},
	"rubbish":                           {later: "rubbish"},
	"an empty line":                     {later: "\r\n"},
	"100 Continue":                      {later: "HTTP/1.1 100 Continue\r\n\r\n"},
	"103 Early Hints":                   {now: "HTTP/1.1 103 Early Hints\r\n\r\n", later: stray},
	"408 and the end":                   {later: "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", then: "end"},
	"half closed":                       {then: "FIN"},
	"an answer, half closed":            {later: stray, then: "FIN"},
	"closed":                            {then: "end"},
	"204 with a body":                   {answer: "HTTP/1.1 204 No Content\r\n\r\n", now: stray},
	"204 with a body and its length":    {answer: "HTTP/1.1 204 No Content\r\nContent-Length: 45\r\n\r\n", later: stray},
	"304 with a body":                   {answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 45\r\n\r\n", later: stray},
	"400 with too much":                 {answer: "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", now: stray},
	"two lengths":                       {answer: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nfor a", later: stray},
	"length and chunks":                 {answer: "HTTP/1.1 200 OK\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfor a\r\n0\r\n\r\n", now: stray},
	"chunks, trailer":                   {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfor a\r\n0\r\nX: y\r\n\r\n", later: stray},
	"LF alone":                          {answer: "HTTP/1.1 200 OK\nContent-Length: 5\n\nfor a", later: stray},
	"interim first":                     {answer: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfor a", later: stray},
	"as much as a buffer":               {now: strings.Repeat(stray, 200)},
	"more than fits into the buffers":   {later: strings.Repeat(stray, 2000)},
	"Content-Length less than the body": {answer: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", now: "for a" + stray},
}

// TestAnswerBelongsToItsRequest has a backend send more than the answer to device a. Device b's request gets a 503, and then
// an answer of its own; nothing else may be taken for one.
func TestAnswerBelongsToItsRequest(t *testing.T) {
	for way, config := range ways(t) {
		for name, test := range strays {
			t.Run(way+"/"+name, func(t *testing.T) {
				t.Parallel()
				sent := make(chan struct{})
				goOn := make(chan struct{})
				down := true
				s := backendOf(t, config[0], func(c *talk) bool {
					switch {
					case c.device == "a":
						answer := test.answer
						if answer == "" {
							answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfor a"
						}
						c.say(answer + test.now)
						if test.later != "" || test.then != "" {
							<-goOn
						}
						c.say(test.later)
						switch test.then {
						case "FIN":
							_ = c.tcp.CloseWrite()
						case "end":
							_ = c.Close()
						}
						close(sent)
					case down:
						down = false
						c.say("HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown")
					default:
						c.answer("for b")
					}
					return true
				})
				release := sync.OnceFunc(func() { close(goOn) })
				t.Cleanup(release)
				x := start(t, Config{URL: s.url, TLS: config[1], Concurrency: 1, FatalStatuses: []int{304}, idle: 2 * time.Second})
				x.enqueue(message("a", 1))
				testkit.Eventually(t, "a's answer", func() bool { s := x.Stats(); return s.Delivered+s.Dead == 1 })
				if test.later != "" || test.then != "" {
					release()
				}
				<-sent
				x.enqueue(message("b", 2))
				got := x.drain()
				if got.Delivered+got.Dead != 2 || got.Retries != 1 || s.requests.Load() != 3 {
					t.Errorf("%+v, %d requests; log:\n%s", got, s.requests.Load(), x.log)
				}
				for _, a := range x.answers {
					if string(a.Body) != "for "+a.Message.DeviceID {
						t.Errorf("%s got %q", a.Message.DeviceID, a.Body)
					}
				}
				if last := len(x.answers) - 1; last < 0 || x.answers[last].Message.DeviceID != "b" {
					t.Error("b got no answer")
				}
				if n := s.accepted.Load(); n != 2 {
					t.Errorf("%d connections, want 2: one for a, one for b", n)
				}
			})
		}
	}
}

// TestConnectionsAreKept counts connections: only what is odd may cost one.
func TestConnectionsAreKept(t *testing.T) {
	kinds := []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown",
		"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 6000\r\n\r\n" + strings.Repeat("x", 6000),
	}
	for way, config := range ways(t) {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			s := backendOf(t, config[0], func(c *talk) bool {
				c.say(kinds[c.request%len(kinds)])
				return true
			})
			x := start(t, Config{URL: s.url, TLS: config[1], Concurrency: 1, idle: 2 * time.Second})
			const messages = 42
			for n := range messages {
				x.enqueue(message("a", n))
				testkit.Eventually(t, "delivery", func() bool { s := x.Stats(); return s.Delivered+s.Dead == uint64(n+1) })
			}
			if n := s.accepted.Load(); n != 1 {
				t.Errorf("%d connections for %d messages; log:\n%s", n, messages, x.log)
			}
			x.drain()
		})
	}
}

// A message of megabytes, so that the backend can speak before it has all of it.
func bigMessage(device string) forward.Message {
	m := message(device, 1)
	m.Payload = []byte(`"` + strings.Repeat("x", 6<<20) + `"`)
	return m
}

// readHead reads a request's header, and not its body.
func readHead(c *talk) bool {
	for {
		line, err := c.r.ReadString('\n')
		switch {
		case err != nil:
			return false
		case line == "\r\n":
			return true
		case strings.HasPrefix(line, "Ce-Source: "):
			c.device = strings.TrimSpace(strings.TrimPrefix(line, "Ce-Source: /devices/"))
		}
	}
}

// TestAnswerBeforeTheRequestIsWritten has a backend answer when it has the header alone.
func TestAnswerBeforeTheRequestIsWritten(t *testing.T) {
	for way, config := range ways(t) {
		for name, test := range map[string]struct {
			used bool // the connection had a request before
			then func(c *talk)
			want forward.Stats
			body string
		}{
			"left from another request": {used: true, want: forward.Stats{Delivered: 2}, body: "all",
				then: func(c *talk) { c.say(stray); _, _ = io.Copy(io.Discard, c.r) }},
			"success, and reads on": {want: forward.Stats{Delivered: 1}, body: "early",
				then: func(c *talk) { c.answer("early"); _, _ = io.Copy(io.Discard, c.r) }},
			"refusal, and hangs up": {want: forward.Stats{Dead: 1},
				then: func(c *talk) {
					c.say("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
					_ = c.tcp.CloseWrite()
					drainSome(c)
				}},
			"success, and hangs up": {want: forward.Stats{Delivered: 1, Retries: 1}, body: "all",
				then: func(c *talk) { c.answer("early"); _ = c.tcp.CloseWrite(); drainSome(c) }},
		} {
			t.Run(way+"/"+name, func(t *testing.T) {
				t.Parallel()
				var turn atomic.Int32
				s := talking(t, config[0], func(s *script, c *talk) {
					_ = c.tcp.SetReadBuffer(256 << 10)
					for readHead(c) {
						if c.device == "small" {
							_, _ = c.r.Discard(len(message("small", 1).Payload))
							c.answer("small")
							continue
						}
						if turn.Add(1) == 1 {
							test.then(c)
							return
						}
						_, _ = c.r.Discard(len(bigMessage("big").Payload))
						c.answer("all")
					}
				})
				x := start(t, Config{URL: s.url, TLS: config[1], Concurrency: 1, idle: 2 * time.Second})
				if test.used {
					x.enqueue(message("small", 1))
					testkit.Eventually(t, "delivery", func() bool { return x.Stats().Delivered == 1 })
				}
				x.enqueue(bigMessage("big"))
				got := x.drain()
				if got.Delivered != test.want.Delivered || got.Dead != test.want.Dead || got.Retries != test.want.Retries {
					t.Errorf("%+v; log:\n%s", got, x.log)
				}
				for _, a := range x.answers {
					if a.Message.DeviceID == "big" && string(a.Body) != test.body {
						t.Errorf("answered %q, want %q", a.Body, test.body)
					}
				}
			})
		}
	}
}

// drainSome reads a little and closes, so that what is still sent breaks the connection.
func drainSome(c *talk) { _, _ = io.CopyN(io.Discard, c.r, 64<<10) }

// TestRecords follows TLS records however they are cut.
func TestRecords(t *testing.T) {
	stream := []byte{23, 3, 3, 0, 3, 1, 2, 3, 23, 3, 3, 0, 0, 23, 3, 3, 1, 0}
	stream = append(stream, make([]byte, 256)...)
	ends := map[int]bool{8: true, 13: true, 18 + 256: true}
	for step := 1; step <= len(stream); step++ {
		var r records
		for at := 0; at < len(stream); {
			n := min(step, len(stream)-at)
			r.pass(stream[at : at+n])
			if at += n; r.within() == ends[at] {
				t.Fatalf("in steps of %d, after %d bytes: within a record: %v", step, at, r.within())
			}
		}
	}
}

// TestTwoSegments has a backend write header and body apart, as Python's http.server does: without TCP_QUICKACK it waits
// 40 ms for our acknowledgement in each request.
func TestTwoSegments(t *testing.T) {
	const messages = 50
	took := func(config [2]*tls.Config, apart bool) time.Duration {
		s := backendOf(t, config[0], func(c *talk) bool { return c.segments(apart) })
		x := start(t, Config{URL: s.url, TLS: config[1], Concurrency: 1, idle: 2 * time.Second})
		x.enqueue(message("a", 0))
		testkit.Eventually(t, "delivery", func() bool { return x.Stats().Delivered == 1 })
		begun := time.Now()
		for n := range messages {
			x.enqueue(message("a", n+1))
		}
		if got := x.drain(); got.Delivered != messages+1 || got.Retries != 0 {
			t.Fatalf("%+v", got)
		}
		return time.Since(begun)
	}
	for way, config := range ways(t) {
		t.Run(way, func(t *testing.T) {
			together, apart := took(config, false), took(config, true)
			if apart > 8*together+messages*2*time.Millisecond {
				t.Errorf("%d messages took %v with answers in two segments, %v with answers in one", messages, apart, together)
			}
		})
	}
}

// segments answers in one segment, or with header and body apart and Nagle's algorithm in between.
func (c *talk) segments(apart bool) bool {
	const head, body = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "ok"
	if !apart {
		c.say(head + body)
		return true
	}
	_ = c.tcp.SetNoDelay(false)
	c.say(head)
	c.say(body)
	return true
}
