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
	// maxConn makes a connection that is never idle give way to one that goes where the name now points.
	maxConn = 5 * time.Minute
	// writePiece is the most that is written, in bytes, before it is looked whether the backend answers already.
	writePiece = 64 << 10
)

var (
	// errUnread says that a connection has bytes that no request has asked for.
	errUnread = errors.New("backend sent data before it got a request")
	// errAged says that a connection is to be replaced though it is in order.
	errAged = errors.New("connection is too old, or was opened with other credentials")
)

// conns are the open connections of a client, in use or idle, so that they can be closed at once. Safe for concurrent
// use.
type conns struct {
	mu     sync.Mutex // guards what follows
	open   map[*conn]struct{}
	closed bool
}

// add takes a connection, unless closeAll was called.
func (s *conns) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (s *conns) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// closeAll closes every connection, also one that is shaking hands, and keeps any other from being added.
func (s *conns) closeAll() {
	s.mu.Lock()
	s.closed = true
	open := make([]*conn, 0, len(s.open))
	for c := range s.open {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		_ = c.tcp.Close()
		s.remove(c)
	}
}

// conn is a connection to the backend that knows whether there is anything to read on it. An answer belongs to the
// request before it (RFC 9112, section 6.3): what is there before a request is written was never asked for, and must
// not be taken for that request's answer. Ready looks for it; over TLS it looks at the plaintext, since session
// tickets, which come after the handshake, are no answer.
//
// But for close it is used by one goroutine at a time.
type conn struct {
	net.Conn // plaintext: the TCP connection, or TLS over it
	tcp      *net.TCPConn
	raw      syscall.RawConn // tcp's
	cipher   *ciphertext     // beneath TLS; nil: there is none
	peer     *tlsPeer        // what the handshake has shown; nil without TLS
	conns    *conns

	opened      time.Time
	timeout     time.Duration // backend.timeout, for errors
	credentials *Credentials  // with which it was opened
	used        bool          // a request was sent on it
	wrote       bool          // a part of the present request was
	early       bool          // something came before the present request was written

	ahead  [1]byte // a byte of plaintext that ready found
	isThat bool    // there is one
}

// newConn makes a conn of a TCP connection, which it closes if it cannot.
func newConn(tcp *net.TCPConn, with *Credentials, registry *conns) (*conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	c := &conn{Conn: tcp, tcp: tcp, raw: raw, conns: registry, opened: time.Now(), credentials: with}
	if !registry.add(c) {
		_ = tcp.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// secure shakes hands.
func (c *conn) secure(ctx context.Context, config *tls.Config, host string) error {
	c.peer = new(tlsPeer)
	c.cipher = &ciphertext{TCPConn: c.tcp, raw: c.raw}
	secured := tls.Client(c.cipher, c.peer.watch(config, host))
	if err := secured.HandshakeContext(ctx); err != nil {
		return err
	}
	c.Conn = secured
	return nil
}

// Handshake tells fasthttp that there is nothing left to do for TLS.
func (c *conn) Handshake() error { return nil }

func (c *conn) Close() error {
	c.conns.remove(c)
	return c.Conn.Close()
}

// ready prepares the connection for a request that is to be answered before deadline. An error says why it must not be
// used: errUnread, errAged, or that it is closed. It does not wait.
func (c *conn) ready(current *Credentials, deadline time.Time) error {
	c.wrote, c.early = false, false
	if time.Since(c.opened) > maxConn || c.credentials != current {
		return errAged
	}
	// Before it is looked: behind an old deadline nothing can be read.
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	return c.unread()
}

// unread returns nil if nothing can be read at present, errUnread if something can, else why not.
func (c *conn) unread() error {
	if c.isThat {
		return errUnread
	}
	if c.cipher == nil {
		switch n, err := peek(c.raw); {
		case errors.Is(err, errNothing):
			return nil
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		}
		return errUnread
	}
	c.cipher.now = true
	n, err := c.Conn.Read(c.ahead[:])
	c.cipher.now = false
	switch {
	case n > 0:
		c.isThat = true
		return errUnread
	case !errors.Is(err, errNothing):
		return err
	case c.cipher.records.within():
		return errUnread // a record has come in part, and may be an answer
	}
	return nil
}

// Write writes a part of a request. Where the backend speaks before all is written, the request fails on a connection
// that had one before, for that may be left from it; on a new one it continues.
func (c *conn) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if c.wrote && !c.early && c.unread() == errUnread {
			if c.used {
				return n, errUnread
			}
			c.early = true
		}
		piece := p[:min(len(p), writePiece)]
		c.wrote = true
		m, err := c.Conn.Write(piece)
		n += m
		if err != nil {
			return n, err
		}
		p = p[m:]
	}
	return n, nil
}

func (c *conn) Read(p []byte) (int, error) {
	if c.isThat && len(p) > 0 {
		c.isThat = false
		p[0] = c.ahead[0]
		return 1, nil
	}
	if c.cipher == nil {
		quickACK(c.raw)
	}
	return c.Conn.Read(p)
}

// ciphertext is the connection beneath TLS. With now set, Read does not wait.
type ciphertext struct {
	*net.TCPConn
	raw     syscall.RawConn
	now     bool
	records records
}

func (c *ciphertext) Read(p []byte) (n int, err error) {
	if c.now {
		n, err = readNow(c.raw, p)
	} else {
		quickACK(c.raw)
		n, err = c.TCPConn.Read(p)
	}
	c.records.pass(p[:n])
	return n, err
}

// records follows the borders of TLS records (RFC 8446, section 5.1): five bytes of header, the last two of which are
// the length of what comes behind.
type records struct {
	header [5]byte
	have   int // bytes of the header
	left   int // bytes of the record behind the header
}

func (s *records) pass(p []byte) {
	for len(p) > 0 {
		if s.have < len(s.header) {
			n := copy(s.header[s.have:], p)
			s.have += n
			p = p[n:]
			if s.have < len(s.header) {
				return
			}
			s.left = int(s.header[3])<<8 | int(s.header[4])
		}
		n := min(s.left, len(p))
		s.left -= n
		p = p[n:]
		if s.left == 0 {
			s.have = 0
		}
	}
}

// within reports whether a record has begun and not ended.
func (s *records) within() bool { return s.have > 0 }

// errNothing is a read's error where there is nothing to read. crypto/tls continues after an error that calls itself
// temporary.
var errNothing error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing to read" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

var _ net.Error = nothing{}
