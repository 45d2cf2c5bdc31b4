package webhook

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/backendurl"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/testkit"
)

// TestRenew exchanges token, client certificate and CA while a request is under way: that one ends as it began, and every
// later one has the new ones, on a connection of its own.
func TestRenew(t *testing.T) {
	type generation struct {
		ca    tls.Certificate
		roots *x509.CertPool
	}
	newGeneration := func(name string) (g generation) {
		g.ca, g.roots = certificate(t, name+" CA", nil), x509.NewCertPool()
		g.roots.AddCert(g.ca.Leaf)
		return g
	}
	before, after := newGeneration("old"), newGeneration("new")
	var serving atomic.Pointer[tls.Config]
	serve := func(g generation) {
		serving.Store(&tls.Config{Certificates: []tls.Certificate{certificate(t, "server", &g.ca)}, ClientCAs: g.roots, ClientAuth: tls.RequireAndVerifyClientCert})
	}
	serve(before)

	var mu sync.Mutex
	seen := map[string]string{} // device: who sent its message
	held, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		device := strings.TrimPrefix(r.Header.Get("Ce-Source"), "/devices/")
		mu.Lock()
		seen[device] = r.TLS.PeerCertificates[0].Subject.CommonName + " " + r.Header.Get("Authorization") + " " + r.Header.Get("Webhook-Signature")[:3]
		mu.Unlock()
		if device == "slow" {
			close(held)
			<-release
		}
	}))
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return serving.Load(), nil },
		Certificates: serving.Load().Certificates}
	s.StartTLS()
	defer s.Close()

	own := func(g generation, name string) *tls.Config {
		return &tls.Config{RootCAs: g.roots, Certificates: []tls.Certificate{certificate(t, name, &g.ca)}}
	}
	x := start(t, Config{URL: s.URL, TLS: own(before, "old"), BearerToken: []byte("old-token"), SigningSecret: []byte("old-secret"), Concurrency: 2, idle: time.Second})
	x.enqueue(message("first", 1))
	testkit.Eventually(t, "delivery", func() bool { return x.Stats().Delivered == 1 })
	x.enqueue(message("slow", 1))
	<-held
	serve(after)
	renewed, err := NewCredentials([]byte("new-token"), []byte("new-secret"), own(after, "new"))
	if err != nil {
		t.Fatal(err)
	}
	x.sink.Renew(renewed)
	for _, device := range []string{"a", "b", "a2", "b2"} {
		x.enqueue(message(device, 1))
	}
	testkit.Eventually(t, "delivery", func() bool { return x.Stats().Delivered == 5 })
	close(release)
	if got := x.drain(); got.Delivered != 6 || got.Retries != 0 {
		t.Errorf("%+v; log:\n%s", got, x.log)
	}
	for device, who := range seen {
		want := "new Bearer new-token v1,"
		if device == "first" || device == "slow" {
			want = "old Bearer old-token v1,"
		}
		if who != want {
			t.Errorf("%s came from %q, want %q", device, who, want)
		}
	}
	if strings.Contains(x.log.String(), "-token") || strings.Contains(x.log.String(), "-secret") {
		t.Error("the log tells a secret")
	}
	for _, bad := range [][2]string{{"geheim geheim", ""}, {"", "whsec_geheim!"}} {
		if _, err := NewCredentials([]byte(bad[0]), []byte(bad[1]), nil); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestRenewLeavesNothing: a request that was sent before carries nothing of credentials that are gone, however it is used
// again.
func TestRenewLeavesNothing(t *testing.T) {
	requests := make(chan http.Header, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { requests <- r.Header }))
	defer s.Close()
	x := start(t, Config{URL: s.URL, BearerToken: []byte("token"), SigningSecret: []byte("secret"), Concurrency: 1})
	names := []string{"Authorization", "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"}
	deliver := func(n int) http.Header {
		x.enqueue(message("sensor", n))
		return <-requests
	}
	first := deliver(1)
	for _, name := range names {
		if first.Get(name) == "" {
			t.Errorf("%s is missing", name)
		}
	}
	none, err := NewCredentials(nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	x.sink.Renew(none)
	later := deliver(2)
	for _, name := range names {
		if value := later.Get(name); value != "" {
			t.Errorf("%s is still %q", name, value)
		}
	}
}

// TestTLSTrouble: what is wrong with TLS is said in words, with what to do. The test of client certificates is TestTLS.
func TestTLSTrouble(t *testing.T) {
	ca := certificate(t, "CA", nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	expired, early := ca, ca
	for c, shift := range map[*tls.Certificate]time.Duration{&expired: -48 * time.Hour, &early: 48 * time.Hour} {
		*c = shifted(t, &ca, shift)
	}
	secured := func(c tls.Certificate, max uint16) string {
		return backendOf(t, &tls.Config{Certificates: []tls.Certificate{c}, MaxVersion: max}, func(c *talk) bool { c.answer(""); return true }).url
	}
	good := secured(certificate(t, "server", &ca), 0)
	mute := talking(t, nil, func(_ *script, c *talk) { _, _ = c.r.Peek(1) }).url // hangs up
	web := httptest.NewServer(nil)
	defer web.Close()
	for name, test := range map[string]struct{ url, want string }{
		"TLS behind http://":      {strings.Replace(good, "https", "http", 1), "that port of the backend speaks TLS: write https:// in backend.url"},
		"HTTP behind https://":    {strings.Replace(web.URL, "http", "https", 1), "that port of the backend speaks plain HTTP: write http:// in backend.url"},
		"nothing behind https://": {strings.Replace(mute, "http", "https", 1), "closed the connection without an answer"},
		"nothing behind http://":  {mute, "closed the connection without an answer"},
		"expired":                 {secured(expired, 0), "expired at "},
		"not yet valid":           {secured(early, 0), "is valid only from "},
		"TLS 1.1":                 {secured(certificate(t, "server", &ca), tls.VersionTLS11), "let it speak TLS 1.2 or 1.3"},
		"nobody":                  {"http://127.0.0.1:1", "nothing listens on 127.0.0.1:1; start the backend"},
		"no such name":            {"http://backend.invalid", "host name backend.invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			target, err := backendurl.Parse(test.url + "/x")
			if err != nil {
				t.Fatal(err)
			}
			c, err := newClient(Config{Timeout: 5 * time.Second, Concurrency: 1, idle: 20 * time.Millisecond, TLS: &tls.Config{RootCAs: roots}}, target)
			if err != nil {
				t.Fatal(err)
			}
			defer c.hangUp()
			courier := c.courier()
			m := message("a", 1)
			courier.pack(&m)
			if r := courier.send(); r.err == nil || r.status != 0 || r.misread || !strings.Contains(r.err.Error(), test.want) {
				t.Errorf("%+v, want %q", r, test.want)
			}
		})
	}
}

// TestNoBatchForSingles: a sink of single messages fails a batch, of which it could send one message only.
func TestNoBatchForSingles(t *testing.T) {
	requests := make(chan string, 2)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { requests <- r.Header.Get("Ce-Id") }))
	defer s.Close()
	sink, err := New(Config{URL: s.URL, idle: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	r := sink.Send(t.Context(), &forward.Batch{Messages: []forward.Message{message("a", 1), message("a", 2)}})
	if r.Meaning != forward.Failed || r.Err == nil || len(requests) > 0 {
		t.Errorf("%+v, %d requests", r, len(requests))
	}
}
