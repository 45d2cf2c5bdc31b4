package httpd

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// acceptAgain is the time after which it is tried again to take a connection for which there was no descriptor or memory.
const acceptAgain = 100 * time.Millisecond

// A limitListener closes at once what would be one connection too many, in all or of one address. fasthttp has both
// limits, but with the one it takes a connection apart that is still being read when the server stops, and with the other
// it waits, before it accepts another connection, for a TLS handshake that may never come. And fasthttp ends for good when a
// connection cannot be accepted, while the descriptors are the broker's too: whoever opens enough connections to that must
// not end this.
type limitListener struct {
	net.Listener
	most, mostOfOne int

	mu    sync.Mutex // guards what follows
	total int
	open  map[netip.Addr]int

	closing sync.Once
	closed  chan struct{}
}

func newLimitListener(l net.Listener, most, mostOfOne int) *limitListener {
	return &limitListener{Listener: l, most: most, mostOfOne: mostOfOne, open: make(map[netip.Addr]int), closed: make(chan struct{})}
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !l.pause() {
				return nil, err
			}
			continue
		}
		var from netip.Addr
		if addr, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			from = addr.AddrPort().Addr().Unmap()
		}
		l.mu.Lock()
		admitted := l.total < l.most && l.open[from] < l.mostOfOne
		if admitted {
			l.total++
			l.open[from]++
		}
		l.mu.Unlock()
		if admitted {
			return &limitedConn{Conn: conn, listener: l, from: from}, nil
		}
		_ = conn.Close()
	}
}

// pause waits until it may be tried again to accept, and reports whether it may.
func (l *limitListener) pause() bool {
	select {
	case <-l.closed:
		return false
	case <-time.After(acceptAgain):
		return true
	}
}

func (l *limitListener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A limitedConn counts until it is closed.
type limitedConn struct {
	net.Conn
	listener *limitListener
	from     netip.Addr
	once     sync.Once
	linger   atomic.Bool // see lingerAtClose
}

// How long, and for how many bytes, a client may go on sending to whom an answer is on its way.
const (
	lingerTime  = time.Second
	lingerBytes = 4 << 20
)

// lingerAtClose has a connection of ours take what its client is still sending before it is closed. Else the system tells
// the client that the connection is broken, and the answer, which says why, is lost.
func lingerAtClose(conn net.Conn) {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	if c, ok := conn.(*limitedConn); ok {
		c.linger.Store(true)
	}
}

func (c *limitedConn) Close() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok && c.linger.Swap(false) {
		_ = tcp.CloseWrite()
		_ = tcp.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, tcp, lingerBytes)
	}
	c.once.Do(func() {
		c.listener.mu.Lock()
		defer c.listener.mu.Unlock()
		c.listener.total--
		if c.listener.open[c.from]--; c.listener.open[c.from] == 0 {
			delete(c.listener.open, c.from)
		}
	})
	return c.Conn.Close()
}
