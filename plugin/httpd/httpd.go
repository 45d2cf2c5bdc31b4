// Package httpd is the HTTP interface for backends and operators: commands to devices, health, metrics. docs/openapi.yaml
// is its specification. It knows nothing of how a command reaches a device: a Service does that.
package httpd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"mosquitto-bouncer/plugin/crash"
)

// Limits. What a client may cost is their product: some 20 MiB.
const (
	// MaxBody is the longest body of a request, in bytes.
	MaxBody = 64 << 10
	// maxHeader bounds the request line and the headers, in bytes.
	maxHeader = 8 << 10
	// maxConns is how many connections are served at once, maxConnsPerIP how many of one address (IPv6: /64). For one more,
	// one without a valid token is closed: see limitListener.
	maxConns      = 512
	maxConnsPerIP = 384
	// readTimeout bounds the reading of one request, from its first byte, or from the connection's beginning, to its last.
	readTimeout = 5 * time.Second
	// writeTimeout bounds the writing of one answer, idleTimeout the time between two requests.
	writeTimeout = 10 * time.Second
	idleTimeout  = 30 * time.Second
	// maxRequestsPerConn has a client that stays come back by a new connection now and then.
	maxRequestsPerConn = 100_000
	// MaxWait is the longest ?wait, DefaultTTL what a command without ?ttl has.
	MaxWait    = time.Minute
	DefaultTTL = 30 * time.Second
	// MaxDevices is the greatest ?limit.
	MaxDevices = 100
)

// A Service is what the server serves. Its methods are called by many goroutines at a time.
type Service interface {
	// Send takes a command for a device. The error is an *Error, or another one, which is answered with 503.
	Send(ctx context.Context, c NewCommand) (Command, error)
	// Command returns a command by its id; if it is unfinished, as soon as it is finished or when ctx ends.
	Command(ctx context.Context, id string, wait bool) (Command, error)
	// Device returns what the gateway knows of a device. The errors are as Send's.
	Device(ctx context.Context, id string) (Device, error)
	// Slowest returns up to n devices, MaxDevices at most, whose messages have waited longest for the backend.
	Slowest(ctx context.Context, n int) ([]Device, error)
	// Health returns what keeps the gateway from doing its work, one sentence each; none: nothing.
	Health() []string
	// Metrics writes the figures in Prometheus' text format, whose content type it returns.
	Metrics(w io.Writer) (contentType string, err error)
}

// A NewCommand is what a client asks for. Its fields may be kept.
type NewCommand struct {
	Device string
	Client string // whose request it is: address and port
	Key    string // "": none
	Body   []byte
	TTL    time.Duration
}

// A Command is a command as clients see it.
type Command struct {
	ID, Device, State   string
	Final               bool // nothing more is waited for
	Created, Expires    time.Time
	SentAt, FinishedAt  time.Time // zero: not yet
	Body, Result        []byte    // JSON values; nil: none
	ResultDropped, Seen bool      // Seen: an idempotency key led to a command that was there already
}

// A Device is what is known of a device. Verdicts on its publishes, its last wills and its subscriptions are those since
// the gateway's start.
type Device struct {
	ID                   string
	Registered, Disabled bool
	Since                time.Time // the gateway's start
	LastAccepted         time.Time // zero: none since
	Accepted             uint64
	Redelivered          uint64            // accepted before, and acknowledged again
	Refused              map[string]uint64 // by reason
	Pending              int               // messages that wait for the backend, with what is in flight
	OldestSince          time.Time         // when the oldest of them was accepted; zero: there are none, or it is not known
	Failures             int               // requests that failed since the backend last took or refused a message
	Suspended            bool              // nothing is delivered before bouncerctl queue resume
}

// Options are the settings of a Server.
type Options struct {
	Listen string // host:port
	Token  []byte // the bearer token
	TLS    *tls.Config
	// MinTTL and MaxTTL bound ?ttl.
	MinTTL, MaxTTL time.Duration
	Version        string
	Log            *slog.Logger
	// Refused is called for requests without the valid token, at a bounded rate, by many goroutines. It may be nil.
	Refused func(Refusal)
}

// A Server is a running listener.
type Server struct {
	options Options
	service Service
	// identity is what is in force.
	identity atomic.Pointer[identity]
	guard    *guard
	conns    *limitListener
	server   *fasthttp.Server
	served   chan struct{}
	ln       net.Listener
	ctx      context.Context // done when the server stops: ends what waits
	cancel   context.CancelFunc

	answers [6]atomic.Uint64 // by the first digit of the status
}

// Start listens. The error says what to do about it.
func Start(o Options, service Service) (*Server, error) {
	first, err := newIdentity(o.Token, o.TLS)
	if err != nil {
		return nil, err
	}
	s := &Server{options: o, service: service, served: make(chan struct{})}
	s.identity.Store(first)
	if s.ln, s.conns, err = s.listen(); err != nil {
		return nil, err
	}
	listener := s.ln
	s.guard = newGuard(o.Refused, func(r Refusal, count uint64) {
		o.Log.Warn("HTTP requests without the valid token refused", "count", count, "last_client", r.Client)
	})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.server = &fasthttp.Server{
		Handler:                       s.handle,
		ErrorHandler:                  s.unreadable,
		Name:                          "mosquitto-bouncer/" + o.Version,
		Concurrency:                   4 * maxConns, // never reached: see limitListener
		MaxRequestsPerConn:            maxRequestsPerConn,
		ReadTimeout:                   readTimeout,
		WriteTimeout:                  writeTimeout,
		IdleTimeout:                   idleTimeout,
		ReadBufferSize:                maxHeader,
		MaxRequestBodySize:            MaxBody,
		MaxIdleWorkerDuration:         idleTimeout,
		DisablePreParseMultipartForm:  true,
		SecureErrorLogMessage:         true,
		NoDefaultContentType:          true,
		CloseOnShutdown:               true,
		DisableHeaderNamesNormalizing: false,
		Logger:                        quiet{},
	}
	go func() {
		defer close(s.served)
		defer crash.Log(o.Log, "http")
		if err := s.server.Serve(listener); err != nil && s.ctx.Err() == nil {
			o.Log.Error("the HTTP listener has ended; restart the broker", "listen", o.Listen, "error", err)
		}
	}()
	return s, nil
}

// listen opens the listener. Without TLS it must be the loopback interface's, whatever the name in o.Listen resolved to.
func (s *Server) listen() (net.Listener, *limitListener, error) {
	o := &s.options
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, nil, fmt.Errorf("http: cannot listen on %s: %w; free the port, or name another one", o.Listen, err)
	}
	limited := newLimitListener(l, maxConns, maxConnsPerIP)
	if o.TLS == nil {
		if addr, ok := l.Addr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() {
			return nil, nil, errors.Join(fmt.Errorf("http: %s is not a loopback address, and the token would be sent unencrypted; set a certificate, or listen on 127.0.0.1", l.Addr()), l.Close())
		}
		return limited, limited, nil
	}
	return tls.NewListener(limited, &tls.Config{GetConfigForClient: s.choose}), limited, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Stop takes no more connections, ends what waits, and gives what is being answered a second. It may be called more than
// once.
func (s *Server) Stop() error {
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.server.ShutdownWithContext(ctx)
	_ = s.ln.Close() // which a server that has not got round to serving does not do
	<-s.served
	if errors.Is(err, context.DeadlineExceeded) {
		return nil // the remaining connections are dropped at exit
	}
	return err
}

// handle answers one request. It does not panic.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if v := recover(); v != nil {
			crash.Report(s.options.Log, "http", v)
			s.problem(ctx, &Error{Status: 500, Reason: "internal", Detail: "internal error of the gateway; its log has the details"})
		}
		s.answers[min(ctx.Response.StatusCode()/100, 5)].Add(1)
	}()
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.Response.Header.Set("X-Content-Type-Options", "nosniff")
	if err := s.route(ctx); err != nil {
		s.problem(ctx, err)
	}
}

// times returns how often a request has a header. fasthttp keeps one where a proxy before it may have gone by another.
func times(ctx *fasthttp.RequestCtx, header string) (n int) {
	for line := range bytes.SplitSeq(ctx.Request.Header.RawHeaders(), []byte("\n")) {
		if name, _, ok := bytes.Cut(line, []byte(":")); ok && strings.EqualFold(string(name), header) {
			n++
		}
	}
	return n
}

// authorized reports whether the request has the token, and nothing else in its place. The comparison takes the same time whatever differs, the length
// included.
func (s *Server) authorized(ctx *fasthttp.RequestCtx) bool {
	scheme, token, _ := strings.Cut(string(ctx.Request.Header.Peek("Authorization")), " ")
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(sum[:], s.identity.Load().token[:]) == 1 && strings.EqualFold(scheme, "Bearer") && times(ctx, "Authorization") == 1
}

// quiet drops what fasthttp says of clients that break off; what matters is counted.
type quiet struct{}

func (quiet) Printf(string, ...any) {}
