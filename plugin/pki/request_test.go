package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

func request(t *testing.T, key crypto.Signer, cn string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: cn, Organization: []string{"ignored"}}, DNSNames: []string{"ignored.example"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestIssueDeviceFor(t *testing.T) {
	now := time.Now()
	ca, err := NewCA("CA", now, CALifetime)
	if err != nil {
		t.Fatal(err)
	}
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	for _, cn := range []string{"", "sensor_001"} {
		for _, key := range []crypto.Signer{p256, ed} {
			text, err := ca.IssueDeviceFor("sensor_001", request(t, key, cn), now, LeafLifetime)
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(text)
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if cert.Subject.String() != "CN=sensor_001" || len(cert.DNSNames) > 0 || cert.IsCA ||
				!cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
				t.Errorf("%+v", cert.Subject)
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(ca.CertPEM())
			if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
			expires, sum, err := Inspect(text)
			if err != nil || !expires.Equal(cert.NotAfter) || sum != sha256.Sum256(cert.Raw) {
				t.Error(err)
			}
		}
	}
	good := request(t, p256, "sensor_001")
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	for want, bad := range map[string][]byte{
		"no certificate signing request in PEM": []byte("x"),
		"not signed with its own key":           pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: forged}),
		`is for "other", not "sensor_001"`:      request(t, p256, "other"),
		"must be ECDSA":                         request(t, p224, ""),
		"RSA of 2048":                           request(t, small, ""),
	} {
		if _, err := ca.IssueDeviceFor("sensor_001", bad, now, LeafLifetime); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := ca.IssueDeviceFor("a/b", good, now, LeafLifetime); err == nil {
		t.Error("a/b")
	}
}
