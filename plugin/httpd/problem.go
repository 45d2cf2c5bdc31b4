package httpd

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// An Error is a request that is refused: a problem document of RFC 9457.
type Error struct {
	Status int
	// Reason distinguishes problems of one status: "" or a word of the specification, which never changes.
	Reason string
	// Detail says what is wrong with this request, and what to do.
	Detail string
	// RetryAfter is when to try again; 0: not said.
	RetryAfter time.Duration
	// Allow are the methods there are, with 405.
	Allow string
}

func (e *Error) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Reason, e.Detail) }

// problem answers with an error. One that is no *Error is not the client's business.
func (s *Server) problem(ctx *fasthttp.RequestCtx, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		s.options.Log.Error("a request could not be served", "address", ctx.RemoteIP().String(), "path", string(ctx.Path()), "error", err)
		e = &Error{Status: 503, Reason: "unavailable", Detail: "the gateway cannot serve this request now; its log says why", RetryAfter: time.Second}
	}
	body, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Reason string `json:"reason,omitempty"`
		Detail string `json:"detail"`
	}{"about:blank", fasthttp.StatusMessage(e.Status), e.Status, e.Reason, e.Detail})
	if err != nil {
		panic(err) // strings and a number
	}
	ctx.Response.ResetBody()
	ctx.SetStatusCode(e.Status)
	ctx.SetContentType("application/problem+json")
	if e.Allow != "" {
		ctx.Response.Header.Set("Allow", e.Allow)
	}
	if e.RetryAfter > 0 {
		ctx.Response.Header.Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	if e.Status == 401 {
		ctx.Response.Header.Set("WWW-Authenticate", `Bearer realm="mosquitto-bouncer"`)
	}
	ctx.SetBody(body)
}

// unreadable answers what could not be read as a request. The connection is then closed.
func (s *Server) unreadable(ctx *fasthttp.RequestCtx, err error) {
	e := &Error{Status: 400, Reason: "bad_request", Detail: "this is not an HTTP request"}
	var timeout interface{ Timeout() bool }
	_, small := errors.AsType[*fasthttp.ErrSmallBuffer](err)
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		e = tooLarge
		lingerAtClose(ctx.Conn())
	case small:
		lingerAtClose(ctx.Conn())
		e = &Error{Status: 431, Reason: "headers_too_large", Detail: fmt.Sprintf("the request line and the headers have more than %d bytes", maxHeader)}
	case errors.As(err, &timeout) && timeout.Timeout():
		e = &Error{Status: 408, Reason: "too_slow", Detail: fmt.Sprintf("the request did not arrive within %v", readTimeout)}
	}
	s.problem(ctx, e)
	ctx.SetConnectionClose()
	s.answers[e.Status/100].Add(1)
}

var (
	unauthorized = &Error{Status: 401, Reason: "unauthorized", Detail: "the header Authorization: Bearer with the token in [http] token_file is required"}
	notFound     = &Error{Status: 404, Reason: "no_such_path", Detail: "no resource at this path"}
	tooLarge     = &Error{Status: 413, Reason: "too_large", Detail: fmt.Sprintf("the body has more than %d bytes", MaxBody)}
)
