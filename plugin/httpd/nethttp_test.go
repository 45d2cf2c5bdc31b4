package httpd

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"
)

// What follows holds the reasons of docs/dependencies.md why this listener is built on fasthttp's server and not on net/http's.

// netHTTP serves two routes of this listener with a ServeMux of net/http, and returns its address.
func netHTTP(t testing.TB, headerTimeout time.Duration) net.Addr {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/devices/{id}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"device_id":`+quoted(r.PathValue("id"))+"}\n")
	})
	mux.HandleFunc("POST /v1/devices/{id}/commands", func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
		// What a handler can see of wrong framing.
		version := r.Proto != "HTTP/1.1" && (r.Proto != "HTTP/1.0" || len(r.TransferEncoding) > 0)
		if err != nil || version || len(r.Trailer["Content-Length"]) > 0 {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader - 4096} // it adds 4096
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-served
	})
	return l.Addr()
}

// answer sends text and returns what comes first.
func answer(t testing.TB, to net.Addr, text string) (*http.Response, error) {
	t.Helper()
	conn, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return http.ReadResponse(bufio.NewReader(conn), nil)
}

// TestWhyNotNetHTTP fails when a reason does not hold any more: then it is time to measure again.
func TestWhyNotNetHTTP(t *testing.T) {
	at := netHTTP(t, 10*time.Second)
	served, plain := 0, 0
	for name, text := range misframed {
		a, err := answer(t, at, text+behind)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		switch {
		case a.StatusCode < 300:
			served++
			t.Logf("served: %s", name) // a handler sees nothing of what is wrong
		case a.Header.Get("Content-Type") != "application/problem+json":
			plain++
		}
	}
	t.Logf("of %d requests that must be refused %d are served, and %d refused in a way that a handler cannot change", len(misframed), served, plain)
	if served == 0 {
		t.Error("net/http refuses all that has two readings")
	}
	if plain == 0 {
		t.Error("net/http lets a handler answer what cannot be read")
	}
	for _, path := range []string{"/v1/devices/..", "/v1/devices/.", "//v1/devices/d"} {
		if a, err := answer(t, at, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || a.StatusCode/100 != 3 {
			t.Errorf("ServeMux takes %s as it is: %v %v", path, a, err)
		}
	}
	// The client is told nothing, where this listener says 408.
	if a, err := answer(t, netHTTP(t, 50*time.Millisecond), "GET /v1/devices/d HTTP/1.1\r\nHost: x\r\n"); err == nil {
		t.Errorf("net/http answers who is too slow: %s", a.Status)
	}
}

// BenchmarkServers: one request after the other on a connection, and the memory of connections that wait, each with its
// client in this process.
func BenchmarkServers(b *testing.B) {
	const conns = 300
	for name, at := range map[string]func() net.Addr{
		"fasthttp": func() net.Addr { return start(b, echo{}, nil).Addr() },
		"net/http": func() net.Addr { return netHTTP(b, 10*time.Second) },
	} {
		b.Run(name, func(b *testing.B) {
			to := at()
			ask := func(conn net.Conn, answers *bufio.Reader) {
				if _, err := io.WriteString(conn, "GET /v1/devices/d HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\r\n"); err != nil {
					b.Fatal(err)
				}
				a, err := http.ReadResponse(answers, nil)
				if err != nil || a.StatusCode != 200 {
					b.Fatal(a, err)
				}
				_, _ = io.Copy(io.Discard, a.Body)
			}
			dial := func() net.Conn {
				conn, err := net.Dial("tcp", to.String())
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { conn.Close() })
				return conn
			}
			used := func() uint64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				return m.HeapAlloc + m.StackInuse
			}
			conn := dial()
			answers := bufio.NewReader(conn)
			ask(conn, answers)
			b.ReportAllocs()
			for b.Loop() {
				ask(conn, answers)
			}
			before := used()
			waiting := make([]net.Conn, conns)
			for i := range waiting {
				waiting[i] = dial()
				ask(waiting[i], bufio.NewReader(waiting[i]))
			}
			b.ReportMetric(float64(used()-before)/conns, "B/conn")
		})
	}
}
