package httpd

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/pki"
)

// aService answers as its fields say. What it does for real is tested in package plugin, on a gateway.
type aService struct {
	send    func(NewCommand) (Command, error)
	command func(ctx context.Context) (Command, error)
}

func (s aService) Send(_ context.Context, c NewCommand) (Command, error) { return s.send(c) }
func (s aService) Command(ctx context.Context, _ string, _ bool) (Command, error) {
	return s.command(ctx)
}
func (aService) Device(context.Context, string) (Device, error) { return Device{}, nil }
func (aService) Slowest(_ context.Context, n int) ([]Device, error) {
	return make([]Device, n), nil
}
func (aService) Health() []string                  { return nil }
func (aService) Metrics(io.Writer) (string, error) { return "", errors.New("a secret of the inside") }

const testToken = "token"

func start(t testing.TB, s Service, change func(*Options)) *Server {
	t.Helper()
	o := Options{Listen: "127.0.0.1:0", Token: []byte(testToken), MinTTL: time.Second, MaxTTL: time.Hour, Version: "1", Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	server, err := Start(o, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// TestPlainHTTP: without TLS nothing but a loopback address is served, whatever the name for it.
func TestPlainHTTP(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		s, err := Start(Options{Listen: listen, Token: []byte(testToken), Log: slog.Default()}, aService{})
		if err == nil || !strings.Contains(err.Error(), "unencrypted") {
			t.Errorf("%s: %v %v", listen, s, err)
		}
	}
	if _, err := Start(Options{Listen: "127.0.0.1:0", Log: slog.Default()}, aService{}); err == nil {
		t.Error("served without a token")
	}
	taken := start(t, aService{}, nil)
	if _, err := Start(Options{Listen: taken.Addr().String(), Token: []byte(testToken), Log: slog.Default()}, aService{}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken: %v", err)
	}
}

func TestTLS(t *testing.T) {
	ca, err := pki.NewCA("test", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.IssueServer([]string{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	// With a certificate any address is served.
	s := start(t, aService{}, func(o *Options) { o.Listen, o.TLS = ":0", &tls.Config{Certificates: []tls.Certificate{pair}} })
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.CertPEM())
	_, port, err := net.SplitHostPort(s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	a, err := client.Get("https://127.0.0.1:" + port + "/healthz")
	if err != nil || a.StatusCode != 200 {
		t.Fatalf("%v %v", a, err)
	}
	a.Body.Close()
	old := &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	if c, err := tls.Dial("tcp", "127.0.0.1:"+port, old); err == nil {
		c.Close()
		t.Error("TLS 1.1 was served")
	}
}

// TestUnreadable: what is no request gets a problem document too, and the connection is closed.
func TestUnreadable(t *testing.T) {
	s := start(t, aService{}, nil)
	for text, want := range map[string]string{
		"nonsense\r\n\r\n": "400 Bad Request",
		"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 10000) + "\r\n\r\n":                                          "431 Request Header Fields Too Large",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n":                                                                "413 Request Entity Too Large",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n" + strings.Repeat("x", 0x10001) + "\r\n0\r\n\r\n": "413 Request Entity Too Large",
	} {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		go func() { _, _ = io.WriteString(conn, text) }() // it may be cut off
		a, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%.60q: %v", text, err)
			continue
		}
		body, _ := io.ReadAll(a.Body)
		if a.Status != want || a.Header.Get("Content-Type") != "application/problem+json" || !a.Close {
			t.Errorf("%.60q: %s %v %s, want %s", text, a.Status, a.Header, body, want)
		}
		conn.Close()
	}
}

// TestErrorsOfTheInside: internal errors are not shown to clients.
func TestErrorsOfTheInside(t *testing.T) {
	s := start(t, aService{send: func(NewCommand) (Command, error) { panic("a secret of the inside") }}, nil)
	for path, want := range map[string]int{"/metrics": 503, "/v1/devices/x/commands": 500} {
		method, sent := http.MethodGet, ""
		if want == 500 {
			method, sent = http.MethodPost, "1"
		}
		r, _ := http.NewRequestWithContext(t.Context(), method, "http://"+s.Addr().String()+path, strings.NewReader(sent))
		r.Header.Set("Authorization", "bearer "+testToken) // the scheme's letter case does not matter
		r.Header.Set("Content-Type", "application/json; charset=utf-8")
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(a.Body)
		a.Body.Close()
		if a.StatusCode != want || strings.Contains(string(body), "secret") {
			t.Errorf("%s: %d %s", path, a.StatusCode, body)
		}
	}
	for class := range s.answers {
		if n, want := s.answers[class].Load(), uint64(2); n != want && class == 5 || n != 0 && class != 5 {
			t.Errorf("%dxx: counted %d", class, n)
		}
	}
}

// TestStop ends who waits, at once.
func TestStop(t *testing.T) {
	waits := make(chan struct{})
	s := start(t, aService{
		send: func(NewCommand) (Command, error) { return Command{ID: "x"}, nil },
		command: func(ctx context.Context) (Command, error) {
			close(waits)
			<-ctx.Done()
			return Command{ID: "x", Body: []byte("1")}, nil
		},
	}, nil)
	var done sync.WaitGroup
	done.Go(func() {
		r, _ := http.NewRequest(http.MethodPost, "http://"+s.Addr().String()+"/v1/devices/x/commands?wait=1m", strings.NewReader("1"))
		r.Header.Set("Authorization", "Bearer "+testToken)
		r.Header.Set("Content-Type", "application/json")
		a, err := http.DefaultClient.Do(r)
		if err != nil || a.StatusCode != 202 {
			t.Errorf("%v %v", a, err)
			return
		}
		a.Body.Close()
	})
	<-waits
	begin := time.Now()
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	done.Wait()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("still listening")
	}
}

func TestBearer(t *testing.T) {
	s := start(t, aService{command: func(context.Context) (Command, error) { return Command{Body: []byte("1")}, nil }}, nil)
	for header, want := range map[string]int{
		"Bearer " + testToken: 200, "bearer " + testToken: 200, "": 401, "Bearer": 401, "Bearer ": 401, "token": 401, "Basic token": 401,
		"Bearer token ": 200, "Bearer  token": 401, "Bearer tokentoken": 401, "Bearer toke": 401, "Bearer TOKEN": 401,
	} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr().String()+"/v1/commands/x", nil)
		r.Header.Set("Authorization", header)
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		// Who has no token keeps no connection from those who have.
		if a.StatusCode != want || (want == 401) != (a.Header.Get("WWW-Authenticate") != "") || (want == 401) != a.Close {
			t.Errorf("%q: %d, closed %v", header, a.StatusCode, a.Close)
		}
	}
}

// TestAmbiguous: what two readers could read in two ways is refused.
func TestAmbiguous(t *testing.T) {
	sent := 0
	s := start(t, aService{send: func(NewCommand) (Command, error) {
		sent++
		return Command{ID: "x", Body: []byte("1")}, nil
	}}, nil)
	for headers, want := range map[string]string{
		"Authorization: Bearer token\r\nContent-Length: 1\r\n\r\n1":                                                 "202",
		"Authorization: Bearer token\r\nAuthorization: Bearer other\r\nContent-Length: 1\r\n\r\n1":                  "401",
		"Authorization: Bearer other\r\nauthorization: Bearer token\r\nContent-Length: 1\r\n\r\n1":                  "401",
		"Authorization: Bearer token\r\nIdempotency-Key: a\r\nIDEMPOTENCY-KEY: b\r\nContent-Length: 1\r\n\r\n1":     "400",
		"Authorization: Bearer token\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n7\r\n0\r\n\r\n": "400",
		"Authorization: Bearer token\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\n7\r\n0\r\n\r\n": "400",
		"Authorization: Bearer token\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12":                           "400",
		"Authorization: Bearer token\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n7\r\n0\r\n\r\n":                      "202",
	} {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		before := sent
		if _, err := io.WriteString(conn, "POST /v1/devices/d/commands HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+headers); err != nil {
			t.Fatal(err)
		}
		a, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(a.Status, want) || (sent > before) != (want == "202") || (want == "400" && strings.Contains(headers, "chunked") && !a.Close) {
			t.Errorf("%q: %s, close %v, %d sent", headers, a.Status, a.Close, sent-before)
		}
		a.Body.Close()
		conn.Close()
	}
}

// TestTooLargeIsAnswered: a client that is still sending when it is refused gets the answer, not a broken connection.
func TestTooLargeIsAnswered(t *testing.T) {
	s := start(t, aService{}, nil)
	body := strings.Repeat("x", 2<<20)
	for range 20 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Addr().String()+"/v1/devices/x/commands", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+testToken)
		r.Header.Set("Content-Type", "application/json")
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s", a.Status)
		}
	}
}
