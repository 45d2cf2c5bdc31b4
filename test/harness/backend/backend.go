// Package backend is a recording HTTP server on the loopback interface that stands in for the application behind the
// gateway and answers as a script says: well, badly, late or never.
package backend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// DefaultAddr lets the system choose a free port.
const DefaultAddr = "127.0.0.1:0"

// maxBody bounds what is read of a request, in bytes.
const maxBody = 16 << 20

// Request is one request as it came in.
type Request struct {
	// Seq counts the requests from 1 in the order they were read.
	Seq    int
	At     time.Time
	Method string
	Path   string
	// Device is the path's segment between /device/ and /data, empty when the path has another form.
	Device string
	Header http.Header
	// Body holds the exact bytes.
	Body []byte
}

// MessageID is the request's CloudEvents id.
func (r *Request) MessageID() string { return r.Header.Get("ce-id") }

// Answer says what happens to a request.
type Answer struct {
	Status int // 0: 200
	Header http.Header
	Body   []byte
	// Delay passes before the answer.
	Delay time.Duration
	// Hang never answers; it ends when the client gives up or the backend is closed.
	Hang bool
	// Reset breaks the connection off with a TCP reset instead of answering.
	Reset bool
	// Cut sends the header and half of the body, then resets the connection.
	Cut bool
}

// OK is the default answer: 200 with {"status":"ok","device_id":…,"message_id":…}.
func OK(r *Request) Answer {
	body, err := json.Marshal(map[string]string{"status": "ok", "device_id": r.Device, "message_id": r.MessageID()})
	if err != nil {
		panic(fmt.Sprintf("backend: encoding strings: %v", err))
	}
	return Answer{Header: http.Header{"Content-Type": {"application/json"}}, Body: body}
}

// Status answers with a status and no body.
func Status(code int) func(*Request) Answer {
	return func(*Request) Answer { return Answer{Status: code} }
}

// Backend is the server. Safe for concurrent use.
type Backend struct {
	addr string

	mu       sync.Mutex
	answer   func(*Request) Answer
	requests []*Request
	received int           // requests so far, those taken included
	changed  chan struct{} // closed and replaced at every request
	server   *http.Server  // nil while down
	stop     chan struct{} // closed by Down: ends what hangs
	served   chan error    // Serve's result
}

// New starts a backend on addr, which may be DefaultAddr. Close it.
func New(addr string) (*Backend, error) {
	b := &Backend{addr: addr, answer: OK, changed: make(chan struct{})}
	if err := b.Up(); err != nil {
		return nil, err
	}
	return b, nil
}

// TB is what Start needs of a testing.TB.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Start starts a backend for a test, which closes it.
func Start(t TB) *Backend {
	t.Helper()
	b, err := New(DefaultAddr)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Fatalf("closing the backend: %v", err)
		}
	})
	return b
}

// Up listens again after Down, on the same port.
func (b *Backend) Up() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server != nil {
		return nil
	}
	listener, err := net.Listen("tcp", b.addr)
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	b.addr = listener.Addr().String()
	stop, served := make(chan struct{}), make(chan error, 1)
	server := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.serve(w, r, stop) }),
		ReadHeaderTimeout: 10 * time.Second,
	}
	b.server, b.stop, b.served = server, stop, served
	go func() { served <- server.Serve(listener) }()
	return nil
}

// Down stops listening and breaks every connection; further attempts are refused until Up.
func (b *Backend) Down() error {
	b.mu.Lock()
	server, stop, served := b.server, b.stop, b.served
	b.server = nil
	b.mu.Unlock()
	if server == nil {
		return nil
	}
	close(stop)
	err := server.Close()
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

// Close is Down for good.
func (b *Backend) Close() error { return b.Down() }

// Addr is the host:port, the same over Down and Up.
func (b *Backend) Addr() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addr
}

// URL is the [backend] url setting that leads here.
func (b *Backend) URL() string { return "http://" + b.Addr() + "/device/{device_id}/data" }

// Script sets how requests are answered from now on. The function is called concurrently.
func (b *Backend) Script(answer func(*Request) Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

// Requests returns what has been received so far, in order.
func (b *Backend) Requests() []*Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests[:len(b.requests):len(b.requests)]
}

// Count is the number of requests received so far.
func (b *Backend) Count() int { return len(b.Requests()) }

// Take waits until there is a request, then returns all there are and forgets them. Nothing else may wait at
// the same time.
func (b *Backend) Take(ctx context.Context) ([]*Request, error) {
	if _, err := b.Wait(ctx, 1); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.requests
	b.requests = nil
	return taken, nil
}

// Wait waits until n requests have been received in all, and returns them.
func (b *Backend) Wait(ctx context.Context, n int) ([]*Request, error) {
	for {
		b.mu.Lock()
		requests, changed := b.requests, b.changed
		b.mu.Unlock()
		if len(requests) >= n {
			return requests[:len(requests):len(requests)], nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return requests, fmt.Errorf("backend: %d of %d requests came: %w", len(requests), n, context.Cause(ctx))
		}
	}
}

// WaitFor returns the first request that match accepts, whether it is there already or yet to come.
func (b *Backend) WaitFor(ctx context.Context, match func(*Request) bool) (*Request, error) {
	seen := 0
	for {
		b.mu.Lock()
		requests, changed := b.requests, b.changed
		b.mu.Unlock()
		for ; seen < len(requests); seen++ {
			if match(requests[seen]) {
				return requests[seen], nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("backend: waiting for a request, %d others came: %w", seen, context.Cause(ctx))
		}
	}
}

// WaitMessage waits for the request that carries a message id.
func (b *Backend) WaitMessage(ctx context.Context, messageID string) (*Request, error) {
	r, err := b.WaitFor(ctx, func(r *Request) bool { return r.MessageID() == messageID })
	if err != nil {
		return nil, fmt.Errorf("message %s: %w", messageID, err)
	}
	return r, nil
}

func (b *Backend) serve(w http.ResponseWriter, r *http.Request, stop <-chan struct{}) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return // the client broke off: it sent no request
	}
	request := &Request{
		At: time.Now(), Method: r.Method, Path: r.URL.Path, Device: deviceOf(r.URL.Path), Header: r.Header, Body: body,
	}
	b.mu.Lock()
	b.received++
	request.Seq = b.received
	b.requests = append(b.requests, request)
	answer := b.answer
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()

	give(w, r, answer(request), stop)
}

func give(w http.ResponseWriter, r *http.Request, a Answer, stop <-chan struct{}) {
	var late <-chan time.Time
	if !a.Hang {
		late = time.After(a.Delay)
	}
	select {
	case <-late:
	case <-r.Context().Done():
		panic(http.ErrAbortHandler) // returning would answer 200
	case <-stop:
		panic(http.ErrAbortHandler)
	}
	if a.Reset {
		reset(w)
		return
	}
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	if a.Status == 0 {
		a.Status = http.StatusOK
	}
	if a.Cut {
		w.Header().Set("Content-Length", fmt.Sprint(len(a.Body)+1))
		w.WriteHeader(a.Status)
		_, _ = w.Write(a.Body[:len(a.Body)/2]) // the client may be gone
		_ = http.NewResponseController(w).Flush()
		reset(w)
		return
	}
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client may be gone
}

// reset closes the connection so that the peer sees ECONNRESET.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only when the connection is gone already
	}
	conn.Close()
}

func deviceOf(path string) string {
	id, ok := strings.CutPrefix(path, "/device/")
	if !ok {
		return ""
	}
	id, ok = strings.CutSuffix(id, "/data")
	if !ok || strings.Contains(id, "/") {
		return ""
	}
	return id
}
