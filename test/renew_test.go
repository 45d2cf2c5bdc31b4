package test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
)

// certs are a CA of one generation, and what a gateway and a backend of it use.
type certs struct {
	ca    *pki.CA
	roots *x509.CertPool
	files map[string][]byte // as they lie in the directory of secrets
}

func newCerts(g *harness.Gateway, generation string) *certs {
	g.Helper()
	ca, err := pki.NewCA(generation, time.Now(), time.Hour)
	g.Must(err)
	c := &certs{ca: ca, roots: x509.NewCertPool(), files: map[string][]byte{
		"ca.crt": ca.CertPEM(), "backend-token": []byte(generation + "-backend-token-of-32-characters\n"),
		"signing": []byte(generation + "-signing-secret"), "http-token": []byte(generation + "-http-token-of-32-characters-or-more\n"),
	}}
	c.roots.AppendCertsFromPEM(ca.CertPEM())
	c.files["own.crt"], c.files["own.key"], err = ca.IssueDevice("gateway-"+generation, time.Now(), time.Hour)
	g.Must(err)
	c.files["http.crt"], c.files["http.key"], err = ca.IssueServer([]string{"127.0.0.1"}, time.Now(), time.Hour)
	g.Must(err)
	return c
}

// server is the backend's configuration: it demands a client certificate of the same CA.
func (c *certs) server(g *harness.Gateway) *tls.Config {
	g.Helper()
	cert, key, err := c.ca.IssueServer([]string{"127.0.0.1"}, time.Now(), time.Hour)
	g.Must(err)
	pair, err := tls.X509KeyPair(cert, key)
	g.Must(err)
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: c.roots, ClientAuth: tls.RequireAndVerifyClientCert}
}

// install puts files where Kubernetes does: into a directory of their own, to which a link is renamed.
func (c *certs) install(g *harness.Gateway, name string) {
	g.Helper()
	g.Must(os.MkdirAll(g.Broker.Path(filepath.Join("secrets", name)), 0o755))
	for file, content := range c.files {
		g.Must(g.Broker.WriteFile(filepath.Join("secrets", name, file), content))
	}
	link := g.Broker.Path("secrets/..data")
	g.Must(os.Symlink(name, link+".new"))
	g.Must(os.Rename(link+".new", link))
}

// TestRenewedSecrets has all secrets and certificates towards the backend, and those of the listener, renewed by SIGHUP while
// a message is under way, and then a key that does not belong to its certificate.
func TestRenewedSecrets(t *testing.T) {
	var serving atomic.Pointer[tls.Config]
	var mu sync.Mutex
	seen := map[string]string{} // payload: who brought it
	held, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen[string(body)] += r.TLS.PeerCertificates[0].Subject.CommonName + " " + r.Header.Get("Authorization") + ";"
		mu.Unlock()
		if string(body) == "2" {
			close(held)
			<-release
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	setting := func(name string) string { return "secrets/..data/" + name }
	g := &harness.Gateway{T: t}
	old, renewed := newCerts(g, "old"), newCerts(g, "new")
	b, err := broker.New(broker.Options{Devices: []string{"sensor_001"}, HTTP: true, BackendURL: "https://" + s.Listener.Addr().String() + "/{device_id}",
		Settings: map[string]any{
			"backend.ca_file": setting("ca.crt"), "backend.cert_file": setting("own.crt"), "backend.key_file": setting("own.key"),
			"backend.bearer_token_file": setting("backend-token"), "backend.signing_secret_file": setting("signing"),
			"http.token_file": setting("http-token"), "http.cert_file": setting("http.crt"), "http.key_file": setting("http.key"),
		}})
	g.Must(err)
	g.Broker = b
	t.Cleanup(func() { _ = b.Close() })
	old.install(g, "..1")
	serving.Store(old.server(g))
	s.TLS = &tls.Config{Certificates: serving.Load().Certificates,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return serving.Load(), nil }}
	s.StartTLS()
	t.Cleanup(s.Close)
	g.Must(b.Start())

	brought := func(payload string) string {
		mu.Lock()
		defer mu.Unlock()
		return seen[payload]
	}
	ask := func(c *certs, token *certs) int {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: c.roots}}}
		r, _ := http.NewRequest(http.MethodGet, "https://"+b.HTTPAddr()+"/metrics", nil)
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token.files["http-token"])))
		a, err := client.Do(r)
		if err != nil {
			return 0
		}
		a.Body.Close()
		return a.StatusCode
	}
	hangUp := func(want string) {
		g.Helper()
		mark := b.Log().Mark()
		g.Must(b.Signal(syscall.SIGHUP))
		_, err := b.WaitLog(g.Limit(), mark, broker.Contains(want))
		g.Must(err)
	}
	one := g.Device("sensor_001")
	c := g.Connect(one, harness.MQTT5)
	publish := func(payload string) {
		g.Helper()
		if !g.Publish(c, c.DataTopic(), 1, one.Sign(payload).Bytes).Accepted() {
			g.Fatalf("%s was not accepted", payload)
		}
	}
	publish("1")
	g.Eventually("delivery", func() bool { return brought("1") != "" })
	if ask(old, old) != 200 || ask(old, renewed) != 401 {
		t.Error("the listener does not serve as configured")
	}
	publish("2")
	<-held
	renewed.install(g, "..2")
	serving.Store(renewed.server(g))
	hangUp("bouncer.toml was reloaded")
	close(release)
	publish("3")
	g.Eventually("delivery", func() bool { return brought("3") != "" })
	if ask(old, old) != 0 || ask(renewed, old) != 401 || ask(renewed, renewed) != 200 {
		t.Error("the listener has not the new certificate, or the new token")
	}

	// The key of another certificate: the last good ones stay.
	broken := newCerts(g, "broken")
	broken.files["own.key"] = old.files["own.key"]
	broken.install(g, "..3")
	hangUp("bouncer.toml was not reloaded")
	publish("4")
	g.Eventually("delivery", func() bool { return brought("4") != "" })
	if ask(renewed, renewed) != 200 || ask(renewed, broken) != 401 {
		t.Error("after a reload that failed, the listener has changed")
	}
	for payload, want := range map[string]string{"1": "old", "2": "old", "3": "new", "4": "new"} {
		if got, want := brought(payload), "gateway-"+want+" Bearer "+want+"-backend-token-of-32-characters;"; got != want {
			t.Errorf("message %s came from %q, want %q", payload, got, want)
		}
	}
	text := strings.Join(b.Log().Lines(0), "\n")
	for _, line := range []string{"secrets and certificates were renewed", "backend.bearer_token_file", "http.cert_file", "do not belong together"} {
		if !strings.Contains(text, line) {
			t.Errorf("the log does not have %q", line)
		}
	}
	for _, secret := range []string{"-backend-token-of", "-http-token-of", "-signing-secret"} {
		if strings.Contains(text, secret) {
			t.Error("the log tells a secret")
		}
	}
	g.Must(b.Stop())
}
