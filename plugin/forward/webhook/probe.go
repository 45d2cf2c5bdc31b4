package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	probeEvery  = time.Minute
	probeWithin = time.Second
)

// tlsProbe finds out whether a port that gives no answer to plain HTTP speaks TLS: most servers with TLS just hang up.
// It asks at most once a minute and remembers what it heard. The zero value is ready, and safe for concurrent use.
type tlsProbe struct {
	mu     sync.Mutex
	asked  time.Time
	speaks bool
}

// ask reports whether addr speaks TLS. It takes a second at most; while one caller asks, others get the last answer.
func (p *tlsProbe) ask(ctx context.Context, addr string) bool {
	p.mu.Lock()
	if time.Since(p.asked) < probeEvery {
		defer p.mu.Unlock()
		return p.speaks
	}
	p.asked = time.Now()
	p.mu.Unlock()
	speaks := speaksTLS(ctx, addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.speaks = speaks
	return speaks
}

// speaksTLS begins a handshake. Nothing is sent in it but the ClientHello and what ends it, so that no certificate has to
// be checked.
func speaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	err = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}).HandshakeContext(ctx)
	if _, other := errors.AsType[tls.RecordHeaderError](err); other || isTimeout(err) {
		return false
	}
	return ctx.Err() == nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE)
}

// wantsTLS reports whether the reason for err, with which a new connection has ended, is that the port speaks TLS.
func (c *client) wantsTLS(err error) bool {
	return !c.target.Secure() && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)) &&
		c.probe.ask(c.ctx, c.http.Addr)
}
