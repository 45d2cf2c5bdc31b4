package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func TestCA(t *testing.T) {
	ca := newCA(t)
	cert := parse(t, ca.CertPEM())
	switch {
	case cert.Subject.CommonName != "test CA":
		t.Errorf("subject %s", cert.Subject)
	case !cert.IsCA || !cert.BasicConstraintsValid || cert.MaxPathLen != 0 || !cert.MaxPathLenZero:
		t.Error("not a CA for leaves only")
	case cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign:
		t.Errorf("key usage %b", cert.KeyUsage)
	case !cert.NotBefore.Equal(now.Add(-time.Hour)) || !cert.NotAfter.Equal(now.Add(CALifetime)):
		t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	case cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() < 100:
		t.Errorf("serial number %s", cert.SerialNumber)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		t.Error(err)
	}
	checkKey(t, cert)
}

func TestServer(t *testing.T) {
	ca := newCA(t)
	certPEM, keyPEM, err := ca.IssueServer([]string{"broker.example", "localhost", "127.0.0.1", "::1", "localhost", "0:0::1"}, now, LeafLifetime)
	if err != nil {
		t.Fatal(err)
	}
	cert := checkLeaf(t, certPEM, keyPEM, x509.ExtKeyUsageServerAuth)
	if !slices.Equal(cert.DNSNames, []string{"broker.example", "localhost"}) {
		t.Errorf("DNS names %q", cert.DNSNames)
	}
	if !slices.EqualFunc(cert.IPAddresses, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, net.IP.Equal) {
		t.Errorf("IP addresses %s", cert.IPAddresses)
	}
	if cert.Subject.CommonName != "broker.example" {
		t.Errorf("subject %s", cert.Subject)
	}
	for _, name := range []string{"broker.example", "localhost", "127.0.0.1", "::1"} {
		if err := verify(ca, cert, name, x509.ExtKeyUsageServerAuth, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if verify(ca, cert, "other.example", x509.ExtKeyUsageServerAuth, now) == nil {
		t.Error("passes for another host")
	}
	if verify(ca, cert, "", x509.ExtKeyUsageClientAuth, now) == nil {
		t.Error("a server passes for a device")
	}
}

func TestDevice(t *testing.T) {
	ca := newCA(t)
	for _, id := range []string{"sensor_001", "a", "AA:BB:CC.dd-ee", strings.Repeat("x", 64)} {
		certPEM, keyPEM, err := ca.IssueDevice(id, now, LeafLifetime)
		if err != nil {
			t.Fatalf("%q: %v", id, err)
		}
		cert := checkLeaf(t, certPEM, keyPEM, x509.ExtKeyUsageClientAuth)
		if cert.Subject.CommonName != id || len(cert.Subject.Names) != 1 {
			t.Errorf("%q: subject %s", id, cert.Subject)
		}
		if err := verify(ca, cert, "", x509.ExtKeyUsageClientAuth, now.Add(-59*time.Minute)); err != nil {
			t.Errorf("%q, with a clock an hour behind: %v", id, err)
		}
		if verify(ca, cert, "", x509.ExtKeyUsageClientAuth, now.Add(LeafLifetime+time.Second)) == nil {
			t.Errorf("%q: valid after its lifetime", id)
		}
		if verify(ca, cert, "", x509.ExtKeyUsageServerAuth, now) == nil {
			t.Errorf("%q: a device passes for a server", id)
		}
		if verify(newCA(t), cert, "", x509.ExtKeyUsageClientAuth, now) == nil {
			t.Errorf("%q: another CA of the same name vouches for it", id)
		}
	}
}

func TestRefusals(t *testing.T) {
	ca := newCA(t)
	device := func(id string, at time.Time, lifetime time.Duration) error {
		_, _, err := ca.IssueDevice(id, at, lifetime)
		return err
	}
	server := func(names ...string) error {
		_, _, err := ca.IssueServer(names, now, LeafLifetime)
		return err
	}
	_, noName := NewCA("", now, CALifetime)
	_, noTime := NewCA("x", now, 0)
	leaf, leafKey, err := ca.IssueDevice("sensor", now, LeafLifetime)
	if err != nil {
		t.Fatal(err)
	}
	_, noCA := LoadCA(leaf, leafKey)
	_, noPair := LoadCA(ca.CertPEM(), leafKey)
	_, nothing := LoadCA(nil, nil)
	for _, test := range []struct {
		got  error
		want string
	}{
		{device("", now, LeafLifetime), `the device id "" is not 1 to 64 of A-Z a-z 0-9 . _ : -`},
		{device("a/b", now, LeafLifetime), `the device id "a/b" is not 1 to 64 of A-Z a-z 0-9 . _ : -`},
		{device("a\n", now, LeafLifetime), `the device id "a\n" is not 1 to 64 of A-Z a-z 0-9 . _ : -`},
		{device("+", now, LeafLifetime), `the device id "+" is not 1 to 64 of A-Z a-z 0-9 . _ : -`},
		{device("sénsor", now, LeafLifetime), `the device id "sénsor" is not 1 to 64 of A-Z a-z 0-9 . _ : -`},
		{device(strings.Repeat("x", 65), now, LeafLifetime), `the device id "` + strings.Repeat("x", 65) + `" is not 1 to 64 of A-Z a-z 0-9 . _ : -`},
		{device("a", now, 0), `the certificate's lifetime 0s must be positive`},
		{device("a", now.Add(CALifetime), LeafLifetime), `the CA "CN=test CA" expired at 2036-11-19T12:00:00Z; make a new one`},
		{server(), `a server certificate needs at least one host name or IP address`},
		{server("a", ""), `"" is neither a host name nor an IP address`},
		{server("a b"), `"a b" is neither a host name nor an IP address`},
		{server("[::1]"), `"[::1]" is neither a host name nor an IP address`},
		{server("fe80::1%eth0"), `"fe80::1%eth0" is neither a host name nor an IP address`},
		{server("a:8883"), `"a:8883" is neither a host name nor an IP address`},
		{server("-a"), `"-a" is neither a host name nor an IP address`},
		{server("a..b"), `"a..b" is neither a host name nor an IP address`},
		{server("a.*.b"), `"a.*.b" is neither a host name nor an IP address`},
		{noName, `the CA's name "" must have 1 to 64 bytes`},
		{noTime, `the CA's lifetime 0s must be positive`},
		{noCA, `the certificate of "CN=sensor" may not sign certificates; use a CA's`},
		{noPair, `no CA certificate and key: tls: private key does not match public key`},
		{nothing, `no CA certificate and key: tls: failed to find any PEM data in certificate input`},
	} {
		if test.got == nil || test.got.Error() != test.want {
			t.Errorf("got %v\nwant %s", test.got, test.want)
		}
	}
}

func TestNames(t *testing.T) {
	ca := newCA(t)
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + ".example"
	for _, name := range []string{"*.example", "my_host", "xn--bcher-kva.example", "A", long} {
		certPEM, _, err := ca.IssueServer([]string{name}, now, LeafLifetime)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		host := strings.Replace(name, "*", "www", 1)
		if err := verify(ca, parse(t, certPEM), host, x509.ExtKeyUsageServerAuth, now); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestNotBeyondCA: a certificate that outlives its CA would fail without notice.
func TestNotBeyondCA(t *testing.T) {
	ca := newCA(t)
	late := now.Add(CALifetime - 24*time.Hour)
	certPEM, _, err := ca.IssueDevice("sensor", late, LeafLifetime)
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, certPEM).NotAfter; !got.Equal(ca.cert.NotAfter) {
		t.Errorf("valid until %s, the CA until %s", got, ca.cert.NotAfter)
	}
}

func TestLoadCA(t *testing.T) {
	ca := newCA(t)
	keyPEM, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	if block, rest := pem.Decode(keyPEM); block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		t.Errorf("key is not PKCS#8: %.30s", keyPEM)
	}
	loaded, err := LoadCA(ca.CertPEM(), keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, _, err := loaded.IssueDevice("sensor", now, LeafLifetime)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(ca, parse(t, certPEM), "", x509.ExtKeyUsageClientAuth, now); err != nil {
		t.Error(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ca.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(ca.CertPEM(), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})); err != nil {
		t.Errorf("a key as openssl ecparam writes it: %v", err)
	}
}

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test CA", now, CALifetime)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" || len(rest) != 0 {
		t.Fatalf("not one PEM certificate: %q", certPEM)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func checkLeaf(t *testing.T, certPEM, keyPEM []byte, usage x509.ExtKeyUsage) *x509.Certificate {
	t.Helper()
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	cert := parse(t, certPEM)
	switch {
	case cert.IsCA || !cert.BasicConstraintsValid:
		t.Error("may sign certificates")
	case cert.KeyUsage != x509.KeyUsageDigitalSignature:
		t.Errorf("key usage %b", cert.KeyUsage)
	case !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{usage}) || cert.UnknownExtKeyUsage != nil:
		t.Errorf("extended key usage %v", cert.ExtKeyUsage)
	case !cert.NotBefore.Equal(now.Add(-time.Hour)) || !cert.NotAfter.Equal(now.Add(825*24*time.Hour)):
		t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	case cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() < 100:
		t.Errorf("serial number %s", cert.SerialNumber)
	case len(cert.AuthorityKeyId) == 0:
		t.Error("no authority key id")
	}
	checkKey(t, cert)
	return cert
}

func checkKey(t *testing.T, cert *x509.Certificate) {
	t.Helper()
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("not a P-256 key: %T", cert.PublicKey)
	}
}

func verify(ca *CA, cert *x509.Certificate, host string, usage x509.ExtKeyUsage, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.CertPEM())
	_, err := cert.Verify(x509.VerifyOptions{
		DNSName:     host,
		Roots:       roots,
		CurrentTime: at,
		KeyUsages:   []x509.ExtKeyUsage{usage},
	})
	return err
}
