package forward

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var misreadReply = reply{status: 200, err: errors.New("cannot be read"), misread: true}

func TestUnreadableAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		x := start(t, with(func(m *Message) reply {
			if m.DeviceID == "a" && number(m) == "1" {
				tries++
				return misreadReply
			}
			return reply{status: 200}
		}))
		begun := time.Now()
		for n := range 3 {
			x.enqueue(message("a", n+1))
			x.enqueue(message("b", n+1))
		}
		s := x.drain()
		if s.Delivered != 5 || s.Dead != 1 || s.Retries != maxMisread-1 || s.Down || x.store.graves() != "a/1 unreadable_answer 200 10" {
			t.Errorf("%+v %s", s, x.store.graves())
		}
		if d := time.Since(begun); tries != maxMisread || d < time.Second || d > time.Minute {
			t.Errorf("%d tries in %v", tries, d)
		}
		if x.log.count("message is dead", "reason=unreadable_answer", "status=200", `error="cannot be read"`) != 1 {
			t.Errorf("log:\n%s", x.log)
		}
	})
}

// A batch whose answer cannot be read is halved, as after other failures, until the message is alone.
func TestUnreadableAnswerInBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		x := start(t, batches(Config{Batch: 8, Linger: time.Millisecond, Concurrency: 1}, func(ms []Message) reply {
			tries++
			if strings.Contains(list(ms), "a3") {
				return misreadReply
			}
			return reply{status: 200}
		}))
		for n := range 4 {
			x.enqueue(message("a", n+1))
			x.enqueue(message("b", n+1))
		}
		s := x.drain()
		if s.Delivered != 7 || s.Dead != 1 || x.store.graves() != "a/3 unreadable_answer 200 10" || tries != 13 {
			t.Errorf("%+v %s, %d tries", s, x.store.graves(), tries)
		}
	})
}

// While nobody is answered, what says nothing in HTTP may be another program that has the port: it costs no message.
func TestNotHTTPWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wrong := true
		x := start(t, with(func(*Message) reply {
			if wrong {
				return reply{err: errors.New("no HTTP"), misread: true}
			}
			return reply{status: 200}
		}))
		for n := range breakerThreshold {
			x.enqueue(message(string(rune('a'+n)), 1))
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if s := x.Stats(); s.Dead != 0 || !s.Down || s.Retries < 100 {
			t.Errorf("%+v", s)
		}
		wrong = false
		if s := x.drain(); s.Delivered != breakerThreshold {
			t.Errorf("%+v", s)
		}
	})
}

// What is misread, over real connections.
func TestMisread(t *testing.T) {
	for name, test := range map[string]struct {
		answer  string
		misread bool
		status  int
		err     string
	}{
		"LF alone":          {answer: "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", status: 200},
		"identity":          {answer: "HTTP/1.1 200 OK\r\nContent-Encoding: Identity\r\nContent-Length: 2\r\n\r\nok", status: 200},
		"no colon":          {answer: "HTTP/1.1 200 OK\r\nfoo\r\n\r\n", misread: true, status: 200, err: "a header line has no colon"},
		"not HTTP":          {answer: "220 mail ESMTP\r\n", misread: true, err: "it is not HTTP"},
		"half a body":       {answer: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", misread: true, status: 200, err: "cut short: 2 of 9 bytes"},
		"half of a 500":     {answer: "HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\nok", status: 500, err: "cut short"},
		"half a status":     {answer: "HTTP/1.1 2", err: "cut short"},
		"nothing":           {answer: "", err: "closed the connection without an answer"},
		"refusal, no colon": {answer: "HTTP/1.1 404 No\r\nfoo\r\n\r\n", status: 404, err: "no colon"},
		"TLS alert":         {answer: "\x15\x03\x01\x00\x02\x02\x46", err: "speaks TLS: write https://"},
		"Go's TLS port":     {answer: "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", err: "speaks TLS"},
		"nginx's TLS port":  {answer: "HTTP/1.1 400 Bad Request\r\nContent-Length: 64\r\n\r\n<center>The plain HTTP request was sent to HTTPS port</center>...", err: "speaks TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			s := backendOf(t, nil, func(c *talk) bool {
				c.say(test.answer)
				return false
			})
			target, _ := parseTarget(s.url + "/x")
			c, err := newClient(Config{Timeout: 5 * time.Second, Concurrency: 1, idle: 20 * time.Millisecond}, target)
			if err != nil {
				t.Fatal(err)
			}
			defer c.hangUp()
			courier := c.courier()
			m := message("a", 1)
			courier.pack(&m)
			r := courier.send()
			if r.misread != test.misread || r.status != test.status || (r.err == nil) != (test.err == "") ||
				r.err != nil && (!strings.Contains(r.err.Error(), test.err) || strings.Contains(r.err.Error(), "fasthttp")) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// What does not end is named too: no length and an open connection, or a length that never comes.
func TestAnswerWithoutEnd(t *testing.T) {
	for answer, want := range map[string]string{
		"HTTP/1.1 200 OK\r\n\r\nok":                      "no Content-Length, and the connection was not closed within backend.timeout",
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok": "2 of 9 bytes came within backend.timeout; check its Content-Length",
		"HTTP/1.1 200 OK\nContent-":                      "its header is not complete within backend.timeout",
	} {
		s := backendOf(t, nil, func(c *talk) bool {
			c.say(answer)
			return true
		})
		target, _ := parseTarget(s.url + "/x")
		c, err := newClient(Config{Timeout: 100 * time.Millisecond, Concurrency: 1, idle: 20 * time.Millisecond}, target)
		if err != nil {
			t.Fatal(err)
		}
		courier := c.courier()
		m := message("a", 1)
		courier.pack(&m)
		if r := courier.send(); !r.misread || r.status != 200 || !strings.Contains(r.err.Error(), want) {
			t.Errorf("%q: %+v", answer, r)
		}
		c.hangUp()
	}
}
