package webhook

import (
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/backendurl"
)

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
			target, _ := backendurl.Parse(s.url + "/x")
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
		target, _ := backendurl.Parse(s.url + "/x")
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
