package httpd

import (
	"container/list"
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

// A limitListener bounds the connections, in all and of one peer. Where there is one too many, a connection is closed on
// which no valid token has come yet: of the peer that has most of those, the one that has been open longest. A connection
// that has brought the token is never closed for another. So a client without the token can close only connections of others
// who have none, and first of all their own.
//
// fasthttp has both limits, but with the one it takes a connection apart that is still being read when the server stops,
// and with the other it waits, before it accepts another connection, for a TLS handshake that may never come. And fasthttp
// ends for good when a connection cannot be accepted, while the descriptors are the broker's too: a client that opens enough
// connections to that must not end this.
type limitListener struct {
	net.Listener
	most, mostOfOne int

	mu       sync.Mutex // guards what follows
	total    int
	peers    map[netip.Addr]*peerConns
	accepted uint64     // connections so far
	leaving  int        // closed for others, and still held by fasthttp
	left     *sync.Cond // of mu: leaving has become smaller, or the listener is closed
	shut     bool

	evicted atomic.Uint64 // connections that were closed for others, or for want of one to close
	closing sync.Once
	closed  chan struct{}
}

// peerConns are the open connections of one peer.
type peerConns struct {
	total int
	// unproven are those on which no token has come, as *limitedConn, the oldest first.
	unproven list.List
}

func newLimitListener(l net.Listener, most, mostOfOne int) *limitListener {
	limited := &limitListener{Listener: l, most: most, mostOfOne: mostOfOne, peers: make(map[netip.Addr]*peerConns), closed: make(chan struct{})}
	limited.left = sync.NewCond(&limited.mu)
	return limited
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
		admitted, victim := l.admit(conn)
		if victim != nil {
			_ = victim.Close()
		}
		if admitted != nil {
			return admitted, nil
		}
		_ = conn.Close()
	}
}

// admit counts a connection, and takes another one out of the count where there is no room. nil: there is none that may be
// closed for it. The caller closes the victim.
func (l *limitListener) admit(conn net.Conn) (admitted *limitedConn, victim net.Conn) {
	from := peer(conn.RemoteAddr())
	l.mu.Lock()
	defer l.mu.Unlock()
	// What fasthttp still holds is bounded too.
	for l.leaving >= l.most && !l.shut {
		l.left.Wait()
	}
	own := l.peers[from]
	var oldest *limitedConn
	switch {
	case own != nil && own.total >= l.mostOfOne:
		oldest = own.oldest()
	case l.total >= l.most:
		oldest = l.mostUnproven()
	default:
		return l.add(conn, from), nil
	}
	l.evicted.Add(1)
	if oldest == nil {
		return nil, nil
	}
	l.remove(oldest)
	oldest.leaving = true
	l.leaving++
	return l.add(conn, from), oldest.Conn
}

// mostUnproven is the connection to close for another one: the oldest unproven one of the peer that has most of them.
func (l *limitListener) mostUnproven() (oldest *limitedConn) {
	n := 0
	for _, p := range l.peers {
		c := p.oldest()
		if c != nil && (p.unproven.Len() > n || p.unproven.Len() == n && c.number < oldest.number) {
			oldest, n = c, p.unproven.Len()
		}
	}
	return oldest
}

func (p *peerConns) oldest() *limitedConn {
	if front := p.unproven.Front(); front != nil {
		return front.Value.(*limitedConn)
	}
	return nil
}

// add and remove keep the count. The caller holds mu.
func (l *limitListener) add(conn net.Conn, from netip.Addr) *limitedConn {
	p := l.peers[from]
	if p == nil {
		p = new(peerConns)
		l.peers[from] = p
	}
	l.accepted++
	c := &limitedConn{Conn: conn, listener: l, from: from, number: l.accepted}
	c.unproven = p.unproven.PushBack(c)
	p.total++
	l.total++
	return c
}

func (l *limitListener) remove(c *limitedConn) {
	p := l.peers[c.from]
	c.prove(p)
	c.removed = true
	l.total--
	if p.total--; p.total == 0 {
		delete(l.peers, c.from)
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
	l.closing.Do(func() {
		close(l.closed)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.shut = true
		l.left.Broadcast()
	})
	return l.Listener.Close()
}

// A limitedConn counts until it is closed.
type limitedConn struct {
	net.Conn
	listener *limitListener
	from     netip.Addr
	number   uint64 // of the listener's connections
	once     sync.Once
	linger   atomic.Bool // see lingerAtClose
	proven   atomic.Bool // see protect

	// The listener's mu guards these.
	unproven *list.Element // nil: a valid token has come
	removed  bool          // from the count
	leaving  bool          // closed for another one
}

// prove takes a connection out of those that may be closed for others. The caller holds the listener's mu.
func (c *limitedConn) prove(p *peerConns) {
	if c.unproven != nil {
		p.unproven.Remove(c.unproven)
		c.unproven = nil
	}
}

// ours returns the connection of ours that is below one of fasthttp's; nil: there is none.
func ours(conn net.Conn) *limitedConn {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	c, _ := conn.(*limitedConn)
	return c
}

// protect keeps a connection, on which a valid token has come, from being closed for another one.
func protect(conn net.Conn) {
	c := ours(conn)
	if c == nil || c.proven.Swap(true) {
		return
	}
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	if !c.removed {
		c.prove(c.listener.peers[c.from])
	}
}

// How long, and for how many bytes, a client may continue sending to whom an answer is on its way.
const (
	lingerTime  = time.Second
	lingerBytes = 4 << 20
)

// lingerAtClose has a connection of ours take what its client is still sending before it is closed. Else the system tells
// the client that the connection is broken, and the answer, which says why, is lost.
func lingerAtClose(conn net.Conn) {
	if c := ours(conn); c != nil {
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
		if !c.removed {
			c.listener.remove(c)
		}
		if c.leaving {
			c.leaving = false
			c.listener.leaving--
			c.listener.left.Signal()
		}
	})
	return c.Conn.Close()
}
