package httpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A madeUp connection is from any address.
type madeUp struct {
	net.Conn
	from   net.Addr
	closed atomic.Bool
}

func (c *madeUp) RemoteAddr() net.Addr { return c.from }
func (c *madeUp) Close() error         { c.closed.Store(true); return nil }

func connFrom(address string) *madeUp {
	return &madeUp{from: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 1000))}
}

// admitted puts a connection through the listener's limit, as Accept does.
func admitted(l *limitListener, conn *madeUp) *limitedConn {
	c, victim := l.admit(conn)
	if victim != nil {
		_ = victim.Close()
	}
	return c
}

// TestTwoAddressesCannotCloseTheBackends: with all connections taken by two addresses that have no token, those that have
// brought it stay, and others can still come.
func TestTwoAddressesCannotCloseTheBackends(t *testing.T) {
	l := newLimitListener(nil, maxConns, maxConnsPerIP)
	var backend []*madeUp
	for range 8 {
		conn := connFrom("192.0.2.1")
		backend = append(backend, conn)
		protect(admitted(l, conn))
	}
	newest := map[string]*madeUp{}
	for range 2000 {
		for _, address := range []string{"198.51.100.1", "::ffff:198.51.100.2"} {
			newest[address] = connFrom(address)
			if admitted(l, newest[address]) == nil {
				t.Fatalf("a connection was not taken, with %d open", l.total)
			}
			l.mu.Lock()
			l.leaving = 0 // as fasthttp closes them
			l.mu.Unlock()
		}
	}
	if l.total != maxConns {
		t.Fatalf("%d connections are open, not %d", l.total, maxConns)
	}
	// The backend's next connection takes the place of one of theirs, and is not the next to be closed.
	fresh := connFrom("192.0.2.1")
	proven := admitted(l, fresh)
	for range 500 {
		admitted(l, connFrom("198.51.100.1"))
		l.mu.Lock()
		l.leaving = 0
		l.mu.Unlock()
	}
	protect(proven)
	for i, conn := range append(backend, fresh) {
		if conn.closed.Load() {
			t.Errorf("connection %d of the backend was closed", i)
		}
	}
	if l.evicted.Load() == 0 {
		t.Error("no closed connection was counted")
	}
}

// TestConnectionsOfOneAddress: one too many of an address closes the oldest of that address that has not brought the token.
func TestConnectionsOfOneAddress(t *testing.T) {
	l := newLimitListener(nil, 10, 2)
	other, first, second, third, fourth := connFrom("192.0.2.9"), connFrom("2001:db8::1"), connFrom("2001:db8::2"), connFrom("2001:db8::3:4"), connFrom("2001:db8::5")
	admitted(l, other)
	one, two := admitted(l, first), admitted(l, second)
	three := admitted(l, third)
	if one == nil || two == nil || three == nil || !first.closed.Load() || second.closed.Load() || third.closed.Load() || other.closed.Load() {
		t.Fatalf("closed: %v %v %v %v", first.closed.Load(), second.closed.Load(), third.closed.Load(), other.closed.Load())
	}
	protect(two)
	protect(three)
	if admitted(l, fourth) != nil {
		t.Error("a connection was taken in the place of one that has brought the token")
	}
	_ = one.Close() // which counts once, when it was closed for another
	_ = one.Close()
	_ = two.Close()
	_ = two.Close()
	if admitted(l, fourth) == nil || l.total != 3 || len(l.peers) != 2 || l.leaving != 0 {
		t.Errorf("%d connections of %d peers, %d leaving", l.total, len(l.peers), l.leaving)
	}
}

// TestLeavingIsBounded: connections that fasthttp has not let go of hold the next ones back, and the end of the listener
// ends the wait.
func TestLeavingIsBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLimitListener(inner, 2, 2)
	var held []*limitedConn
	for range 4 {
		held = append(held, admitted(l, connFrom("192.0.2.1")))
	}
	done := make(chan *limitedConn)
	go func() { done <- admitted(l, connFrom("192.0.2.1")) }()
	select {
	case <-done:
		t.Fatal("taken, with two that are leaving")
	default:
	}
	_ = held[0].Close()
	if <-done == nil {
		t.Error("not taken after one has left")
	}
	go func() { done <- admitted(l, connFrom("192.0.2.1")) }()
	l.Close()
	<-done
}

// TestFloodOverTheWire: a client without the token that opens connection after connection closes none of a client that
// has it, from the same address and over TCP, and the client can open others.
func TestFloodOverTheWire(t *testing.T) {
	s := start(t, aService{}, nil)
	client := func() *http.Client { return &http.Client{Transport: new(http.Transport), Timeout: 10 * time.Second} }
	get := func(c *http.Client) error {
		r, err := http.NewRequest(http.MethodGet, "http://"+s.Addr().String()+"/v1/devices/d", nil)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+testToken)
		a, err := c.Do(r)
		if err != nil {
			return err
		}
		defer a.Body.Close()
		if _, err = io.Copy(io.Discard, a.Body); err == nil && a.StatusCode != 200 {
			err = fmt.Errorf("answered %s", a.Status)
		}
		return err
	}
	dialled := 0
	kept := client()
	kept.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled++
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	if err := get(kept); err != nil {
		t.Fatal(err)
	}
	var flood []net.Conn
	defer func() {
		for _, c := range flood {
			c.Close()
		}
	}()
	for i := range maxConnsPerIP + 100 {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		flood = append(flood, c)
		if i%50 == 49 {
			if err := get(kept); err != nil {
				t.Fatalf("after %d connections: %v", i+1, err)
			}
		}
	}
	if dialled != 1 {
		t.Errorf("the connection of the client with the token was closed %d times", dialled-1)
	}
	fresh := client()
	if err := get(fresh); err != nil {
		t.Errorf("a new connection: %v", err)
	}
	fresh.CloseIdleConnections()
	kept.CloseIdleConnections()
	_ = flood[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := flood[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest connection without the token: %v", err)
	}
	if s.conns.evicted.Load() == 0 {
		t.Error("not counted")
	}
}

// A starved listener has no descriptor for its first connections.
type starved struct {
	net.Listener
	failures atomic.Int32
}

func (l *starved) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// TestOutOfDescriptors: the broker's clients can use up the descriptors, and what cannot be accepted then is served later.
func TestOutOfDescriptors(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	poor := &starved{Listener: inner}
	poor.failures.Store(2)
	l := newLimitListener(poor, 3, 3)
	client, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatalf("the listener has ended: %v", err)
	}
	conn.Close()
	poor.failures.Store(1 << 20)
	time.AfterFunc(10*time.Millisecond, func() { l.Close() })
	if _, err := l.Accept(); err == nil {
		t.Error("accepted after the close")
	}
}
