package webhook

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

// certificate makes a certificate; issuer nil: a CA.
func certificate(t testing.TB, name string, issuer *tls.Certificate) tls.Certificate {
	t.Helper()
	return certificateOf(t, name, issuer, 0)
}

// shifted makes a server's certificate whose time of validity is shifted.
func shifted(t testing.TB, issuer *tls.Certificate, by time.Duration) tls.Certificate {
	t.Helper()
	return certificateOf(t, "server", issuer, by)
}

func certificateOf(t testing.TB, name string, issuer *tls.Certificate, shift time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(shift - time.Hour), NotAfter: time.Now().Add(shift + time.Hour),
		IsCA: issuer == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := template, any(key)
	if issuer != nil {
		parent, signer = issuer.Leaf, issuer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestTLS(t *testing.T) {
	ca, foreign := certificate(t, "CA", nil), certificate(t, "foreign CA", nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	var client atomic.Value
	var resumed atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		client.Store(r.TLS.PeerCertificates[0].Subject.CommonName)
		if r.TLS.DidResume {
			resumed.Add(1)
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t, "server", &ca)}, ClientCAs: roots,
		ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.SetKeepAlivesEnabled(false)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()

	own := certificate(t, "gateway", &ca)
	x := start(t, Config{URL: s.URL, TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}})
	x.enqueue(message("a", 1))
	x.enqueue(message("a", 2))
	if s := x.drain(); s.Delivered != 2 || client.Load() != "gateway" || s.Retries != 0 {
		t.Errorf("%+v, client %v; log:\n%s", s, client.Load(), x.log)
	}
	if resumed.Load() != 1 {
		t.Errorf("%d sessions resumed, want 1", resumed.Load())
	}

	foreignRoots := x509.NewCertPool()
	foreignRoots.AddCert(foreign.Leaf)
	for want, cfg := range map[string]*tls.Config{
		`certificate is signed by unknown authority \"CN=CA\": name the CA`: {RootCAs: foreignRoots, Certificates: []tls.Certificate{own}},
		"certificate is for 127.0.0.1, not 127.0.0.2":                       {RootCAs: roots, Certificates: []tls.Certificate{own}, ServerName: "127.0.0.2"},
		"wants a client certificate: set":                                   {RootCAs: roots}, // TLS 1.3: the alert comes after the handshake
		"wants a client certificate":                                        {RootCAs: roots, MaxVersion: tls.VersionTLS12},
		"wants a client certificate of another CA":                          {RootCAs: roots, Certificates: []tls.Certificate{foreign}},
		"signed by unknown authority":                                       nil,
	} {
		x := start(t, Config{URL: s.URL, TLS: cfg})
		x.enqueue(message("a", 1))
		testkit.Eventually(t, "a retry", func() bool { return x.Stats().Retries > 0 && x.log.Count("retrying") > 0 })
		if x.log.Count("retrying", want) != 1 || x.Stats().Delivered != 0 {
			t.Errorf("%s: %+v; log:\n%s", want, x.Stats(), x.log)
		}
	}
}
