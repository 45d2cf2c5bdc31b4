package forward

import (
	"errors"
	"time"

	"github.com/valyala/fasthttp"
)

// maxMisread is how often a message is sent whose answer cannot be read. With the back-off between them that is half a
// minute, as a rule.
const maxMisread = 10

// tlsPortAnswers are pieces of what servers with TLS (Go's net/http, nginx, Apache) answer to a request in plain HTTP,
// with status 400. That is a mistake in backend.url and not the message's.
var tlsPortAnswers = []string{
	"Client sent an HTTP request to an HTTPS server",
	"The plain HTTP request was sent to HTTPS port",
	"speaking plain HTTP to an SSL-enabled server port",
}

// describe sorts out an attempt's error, and puts it in words.
func (r *reply) describe(timeout time.Duration) {
	if errors.Is(r.err, fasthttp.ErrTimeout) {
		r.err = say(r.err, "no answer within %s (backend.timeout)", timeout)
	}
	if why, is := errors.AsType[*unreadableError](r.err); is {
		r.misread = r.succeeded() || r.status == 0 && why.cause == nil
	}
}

// succeeded reports whether the status line says so.
func (r *reply) succeeded() bool { return r.status >= 200 && r.status < 300 }

// givenUp counts a request of p whose answer could not be read, and reports whether it was the last one. One without a
// status line does not count while the backend as a whole seems down: it may not be the message's backend at all.
func (r *reply) givenUp(p *parcel) bool {
	if !r.misread || r.status == 0 && p.probe {
		return false
	}
	s := &p.spans[0]
	s.misread++
	return s.misread >= maxMisread
}
