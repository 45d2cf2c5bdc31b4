package webhook

import (
	"errors"
	"time"

	"github.com/valyala/fasthttp"
)

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
