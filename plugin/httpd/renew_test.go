package httpd

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/pki"
)

// TestRenew exchanges token and certificate: the token is the new one for every request at once, also on a connection
// that is open; new connections get the new certificate, with no session of the old one.
func TestRenew(t *testing.T) {
	pool := x509.NewCertPool()
	ca, err := pki.NewCA("test", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(ca.CertPEM())
	issue := func() *tls.Config {
		cert, key, err := ca.IssueServer([]string{"127.0.0.1"}, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	before, after := issue(), issue()
	s := start(t, aService{}, func(o *Options) { o.TLS = before })
	config := &tls.Config{RootCAs: pool, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	kept := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer kept.CloseIdleConnections()
	ask := func(client *http.Client, token string) (status int, certificate *x509.Certificate) {
		t.Helper()
		r, _ := http.NewRequest(http.MethodGet, "https://"+s.Addr().String()+"/metrics", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		a, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		return a.StatusCode, a.TLS.PeerCertificates[0]
	}
	old := string(s.options.Token)
	const renewed = "the-new-token-of-thirty-two-bytes-or-more"
	if status, c := ask(kept, old); status == 401 || !c.Equal(leaf(t, before)) {
		t.Fatalf("%d %v", status, c.SerialNumber)
	}
	if err := s.Renew([]byte(renewed), after); err != nil {
		t.Fatal(err)
	}
	if status, _ := ask(kept, old); status != 401 {
		t.Errorf("the old token: %d", status)
	}
	if status, _ := ask(kept, renewed); status == 401 {
		t.Errorf("the new token: %d", status)
	}
	kept.CloseIdleConnections()
	if status, c := ask(kept, renewed); status == 401 || !c.Equal(leaf(t, after)) {
		t.Errorf("a new connection: %d %v", status, c.SerialNumber)
	}
	for name, err := range map[string]error{"no token": s.Renew(nil, after), "no TLS": s.Renew([]byte(renewed), nil)} {
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if status, _ := ask(kept, renewed); status == 401 {
		t.Errorf("after what was refused: %d", status)
	}
}

func leaf(t *testing.T, c *tls.Config) *x509.Certificate {
	t.Helper()
	parsed, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}
