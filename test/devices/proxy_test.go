package devices

import (
	"net"
	"sync"
	"testing"
)

// A proxy is the network between a device and the broker: it can swallow what the broker says, and cut connections.
type proxy struct {
	listener net.Listener
	broker   string

	mu      sync.Mutex
	swallow bool
	open    chan struct{} // closed: what the device says reaches the broker at once
	conns   map[net.Conn]bool
	closed  bool
	running sync.WaitGroup
}

func newProxy(t *testing.T, broker string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, broker: broker, conns: map[net.Conn]bool{}, open: make(chan struct{})}
	close(p.open)
	p.running.Go(p.accept)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.release()
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
		p.cut()
		p.running.Wait()
	})
	return p
}

func (p *proxy) port() int { return p.listener.Addr().(*net.TCPAddr).Port }

func (p *proxy) accept() {
	for {
		device, err := p.listener.Accept()
		if err != nil {
			return
		}
		broker, err := net.Dial("tcp", p.broker)
		if err != nil { // it is down
			device.Close()
			continue
		}
		if !p.enter(device, broker) {
			return
		}
		p.running.Go(func() { p.pump(broker, device, false) })
		p.running.Go(func() { p.pump(device, broker, true) })
	}
}

// enter notes a pair of connections; false: the proxy is closed.
func (p *proxy) enter(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.closed {
			c.Close()
		}
		p.conns[c] = true
	}
	return !p.closed
}

// pump copies until one of the two ends, and then ends the other. fromBroker is what can be swallowed.
func (p *proxy) pump(to, from net.Conn, fromBroker bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		p.mu.Lock()
		drop, open := fromBroker && p.swallow, p.open
		p.mu.Unlock()
		if !fromBroker {
			<-open
		}
		if n > 0 && !drop {
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	to.Close()
	from.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, to)
	delete(p.conns, from)
}

// swallowing has what the broker says get lost, or reach the device again: on a connection that has lost something, nothing
// good comes of it any more.
func (p *proxy) swallowing(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swallow = on
}

// hold keeps what the device says from the broker, until release.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = make(chan struct{})
}

func (p *proxy) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

// cut ends every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}
