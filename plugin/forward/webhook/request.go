package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"mosquitto-bouncer/plugin/ascii"
	"mosquitto-bouncer/plugin/backendurl"
	"mosquitto-bouncer/plugin/cloudevent"
	"mosquitto-bouncer/plugin/forward"

	"github.com/valyala/fasthttp"
)

const (
	maxExcerpt = 1 << 10
	// maxIdleConn is below the keep-alive of the usual servers (Node.js and uvicorn: 5 s), so that we hang up first
	// and no request meets a connection that the server is just closing.
	maxIdleConn = 4 * time.Second
)

// client is the HTTP side, shared by the couriers.
type client struct {
	http      *fasthttp.HostClient
	target    backendurl.URL
	timeout   time.Duration
	userAgent string

	// credentials are those of the requests to come.
	credentials atomic.Pointer[Credentials]

	ctx    context.Context // done after hangUp
	cancel context.CancelFunc
	conns  conns
	probe  tlsProbe
}

func newClient(cfg Config, t backendurl.URL) (*client, error) {
	c := &client{target: t, timeout: cfg.Timeout, userAgent: "mosquitto-bouncer"}
	c.conns.open = make(map[*conn]struct{})
	if cfg.Version != "" {
		c.userAgent += "/" + cfg.Version
	}
	if !ascii.Visible(c.userAgent) {
		return nil, fmt.Errorf("version %q cannot be part of an HTTP header", cfg.Version)
	}
	credentials, err := NewCredentials(cfg.BearerToken, cfg.SigningSecret, cfg.TLS)
	if err != nil {
		return nil, err
	}
	c.credentials.Store(credentials)
	idle := cfg.idle
	if idle == 0 {
		idle = maxIdleConn
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.http = &fasthttp.HostClient{
		Addr:        fasthttp.AddMissingPort(t.Host(), t.Secure()),
		IsTLS:       t.Secure(),
		DialTimeout: c.dial,
		Transport:   &transport{client: c},

		// Twice as many as requests: a connection that is being closed still counts, and fasthttp fails a request
		// rather than let it wait.
		MaxConns:            2 * cfg.Concurrency,
		MaxIdleConnDuration: idle,
		ConnPoolStrategy:    fasthttp.LIFO, // the surplus of a burst idles out

		ReadTimeout:     cfg.Timeout,
		WriteTimeout:    cfg.Timeout,
		WriteBufferSize: writeBufferSize,

		// One repetition, at once, on a connection the server has closed meanwhile; our own back-off does the rest.
		MaxIdemponentCallAttempts: 2,
		RetryIfErr:                c.retryStale,

		NoDefaultUserAgentHeader: true,
		DisablePathNormalizing:   true, // target has escaped it
		SecureErrorLogMessage:    true, // no piece of a response in an error
	}
	return c, nil
}

// retryStale tells fasthttp to repeat a POST when the server closed the connection before the response: the
// Idempotency-Key makes that safe. The idle connections then are most likely closed as well.
func (c *client) retryStale(_ *fasthttp.Request, _ int, err error) (resetTimeout, retry bool) {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		c.http.CloseIdleConnections()
		return false, c.ctx.Err() == nil
	}
	return false, false
}

// dial connects by IPv4 or IPv6, whichever answers first, and shakes hands for https. Unlike fasthttp's dialler it can be
// interrupted, and it resolves the name each time. The error is one for the log.
func (c *client) dial(addr string, timeout time.Duration) (net.Conn, error) {
	if timeout <= 0 {
		timeout = c.timeout
	}
	ctx, cancel := context.WithTimeout(c.ctx, timeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, explainDial(err, addr, c.timeout)
	}
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		_ = nc.Close()
		return nil, fmt.Errorf("internal error: %T is no TCP connection", nc)
	}
	conn, err := newConn(tcp, c.credentials.Load(), &c.conns)
	if err != nil {
		return nil, err
	}
	conn.timeout = c.timeout
	if c.target.Secure() {
		host, _, err := net.SplitHostPort(addr)
		if err == nil {
			err = conn.secure(ctx, conn.credentials.tls, host)
		}
		if err != nil {
			err = conn.explain(err)
			_ = conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// hangUp interrupts every request, also one that is just dialling, and makes every later one fail. Nothing is left
// behind but a goroutine of fasthttp's, which ends at the end of its sleep of at most maxIdleConn.
func (c *client) hangUp() {
	c.cancel()
	c.conns.closeAll()
	c.http.CloseIdleConnections()
}

// exchange is a request and its response, used again and again.
type exchange struct {
	*client
	req  fasthttp.Request
	resp fasthttp.Response
	buf  []byte

	credentials *Credentials // whose token req has
}

func (x *exchange) init(c *client, contentType string) {
	x.client = c
	x.req.Header.SetMethod(fasthttp.MethodPost)
	x.req.Header.SetUserAgent(c.userAgent)
	x.req.Header.SetContentType(contentType)
	// Without the field any content coding would be acceptable (RFC 9110, section 12.5.3).
	x.req.Header.Set("Accept-Encoding", "identity")
}

// authorize gives the request the token that is in force, and returns the credentials it is from. Nothing of earlier ones
// stays in the request, which is used again and again.
func (x *exchange) authorize() *Credentials {
	if now := x.client.credentials.Load(); now != x.credentials {
		x.credentials = now
		x.req.Header.Del("Authorization")
		x.unsign() // of the message before; these may be without a signature
		if now.bearer != "" {
			x.req.Header.Set("Authorization", now.bearer)
		}
	}
	return x.credentials
}

// do makes the attempt. The Idempotency-Key in buf, without its quotes, also makes the webhook-id.
func (x *exchange) do(body []byte) (r reply) {
	x.req.SetBodyRaw(body)
	defer x.req.SetBodyRaw(nil)
	if with := x.authorize(); with.signer != nil {
		if r.err = x.sign(with.signer, x.buf, body, time.Now()); r.err != nil {
			return r
		}
	}
	start := time.Now()
	// DoTimeout runs in this goroutine; the time-out becomes the deadlines of dialling, writing and reading.
	r.err = x.http.DoTimeout(&x.req, &x.resp, x.timeout)
	r.latency = time.Since(start)

	switch failed, ok := errors.AsType[*failure](r.err); {
	case r.err == nil:
		r.status = x.resp.StatusCode()
	case errors.Is(r.err, errTooLong):
		r.status, r.err = x.resp.StatusCode(), nil
		r.unusable = fmt.Sprintf("longer than %d bytes", maxAnswer)
	case ok:
		r.status = failed.status
	}
	r.describe(x.timeout)
	if r.status == fasthttp.StatusBadRequest && !x.target.Secure() && x.fromTLSPort() {
		r.status, r.err = 0, errSpeaksTLS
	}
	if r.status >= 300 {
		r.retryAfter = parseRetryAfter(string(x.resp.Header.Peek(fasthttp.HeaderRetryAfter)), time.Now())
		r.excerpt = x.excerpt()
	}
	return r
}

// coding returns the coding of the response's body, "" if there is none.
func (x *exchange) coding() string { return string(x.resp.Header.ContentEncoding()) }

// fromTLSPort reports whether the response is that of a server that wants TLS.
func (x *exchange) fromTLSPort() bool {
	body := string(x.resp.Body()[:min(len(x.resp.Body()), maxExcerpt)])
	return slices.ContainsFunc(tlsPortAnswers, func(text string) bool { return strings.Contains(body, text) })
}

// excerpt returns what the response's body begins with: nothing of a compressed one, or of one that was not read
// because it was announced to be longer than an answer may be.
func (x *exchange) excerpt() string {
	if x.coding() != "" {
		return ""
	}
	body := x.resp.Body()
	return strings.ToValidUTF8(string(body[:min(len(body), maxExcerpt)]), "?")
}

// httpCourier is the courier over HTTP of one message at a time.
type httpCourier struct {
	exchange
	payload []byte
}

func (c *client) courier() *httpCourier {
	h := &httpCourier{}
	h.init(c, "application/json")
	h.req.Header.Set("Ce-Specversion", cloudevent.Spec)
	h.req.Header.Set("Ce-Type", cloudevent.Type)
	return h
}

// pack fills in what differs from message to message:
//
//	POST {path}
//	Ce-Id: 550e8400-e29b-41d4-a716-446655440000
//	Ce-Source: /devices/sensor_001
//	Ce-Subject: device/sensor_001/data
//	Ce-Time: 2024-09-30T16:00:00Z
//	Idempotency-Key: "sensor_001:550e8400-e29b-41d4-a716-446655440000"
//	Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//
// Source and id together name the event, as CloudEvents demands. The Idempotency-Key joins the same two, so that it is
// the same at every attempt, also after a restart. It is in quotes because draft-ietf-httpapi-idempotency-key-header
// makes it a structured field of type String: a backend that parses it must refuse a bare word, and one that takes
// the field's value as an opaque key does not mind the quotes.
func (h *httpCourier) pack(m *forward.Message) {
	h.buf = h.target.Append(h.buf[:0], m.DeviceID)
	h.req.SetRequestURIBytes(h.buf)

	h.buf = cloudevent.AppendEscaped(h.buf[:0], strings.ToLower(m.MessageID))
	h.req.Header.SetBytesV("Ce-Id", h.buf)

	h.buf = cloudevent.AppendEscaped(append(h.buf[:0], cloudevent.SourcePrefix...), m.DeviceID)
	h.req.Header.SetBytesV("Ce-Source", h.buf)

	if h.buf = cloudevent.AppendEscaped(h.buf[:0], m.Topic); len(h.buf) > 0 && len(h.buf) <= cloudevent.MaxSubject {
		h.req.Header.SetBytesV("Ce-Subject", h.buf)
	} else {
		h.req.Header.Del("Ce-Subject")
	}

	h.buf = time.Unix(m.Timestamp, 0).UTC().AppendFormat(h.buf[:0], time.RFC3339)
	h.req.Header.SetBytesV("Ce-Time", h.buf)

	if cloudevent.ValidTraceparent(m.Traceparent) {
		h.req.Header.Set("Traceparent", m.Traceparent)
	} else {
		h.req.Header.Del("Traceparent")
	}

	h.buf = append(cloudevent.AppendKey(append(h.buf[:0], '"'), m.DeviceID, m.MessageID), '"')
	h.req.Header.SetBytesV("Idempotency-Key", h.buf)

	h.payload = m.Payload
}

func (h *httpCourier) send() reply {
	r := h.do(h.payload)
	h.payload = nil
	if meaningOf(r.status, r.err == nil, nil) == forward.Taken {
		h.answer(&r)
	}
	h.resp.Reset()
	return r
}

// answer copies what is to be handed on out of the response.
func (h *httpCourier) answer(r *reply) {
	body := h.resp.Body()
	if len(body) == 0 || r.unusable != "" {
		return
	}
	if coding := h.coding(); coding != "" {
		r.unusable = fmt.Sprintf("content coding %.20q", coding)
		return
	}
	h.resp.Header.SetNoDefaultContentType(true)
	r.body = append([]byte(nil), body...)
	r.contentType = string(h.resp.Header.ContentType())
}
