// Package pki is a small certificate authority for one broker and its devices:
// P-256 keys, X.509 certificates, RFC 5280.
//
// A server certificate can only be used by a server and a device certificate
// only by a client (extended key usage), so neither passes for the other. The
// common name of a device certificate is the device id, which Mosquitto makes
// the user name (use_identity_as_username).
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"slices"
	"time"

	"mosquitto-bouncer/plugin/deviceid"
)

// Usual lifetimes. A device or server certificate never outlives its CA.
const (
	CALifetime   = 10 * 365 * 24 * time.Hour
	LeafLifetime = 825 * 24 * time.Hour
)

// Backdate is how long before its making a certificate becomes valid, for
// devices whose clock is behind.
const Backdate = time.Hour

// CA is a certificate authority. It is safe for concurrent use; the zero value
// is not usable.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes a self-signed CA with a new key, valid from Backdate before now
// until lifetime after now. It can issue leaf certificates only, no further
// CAs.
func NewCA(commonName string, now time.Time, lifetime time.Duration) (*CA, error) {
	if commonName == "" || len(commonName) > 64 {
		return nil, fmt.Errorf("the CA's name %q must have 1 to 64 bytes", commonName)
	}
	if lifetime <= 0 {
		return nil, fmt.Errorf("the CA's lifetime %s must be positive", lifetime)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &CA{cert, key}, nil
}

// LoadCA reads a CA from PEM: its certificate first, and the private key that
// belongs to it, in PKCS#8, SEC 1 or PKCS#1, not encrypted.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("no CA certificate and key: %w", err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("no CA certificate: %w", err)
	}
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("the certificate of %q may not sign certificates; use a CA's", cert.Subject)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the CA's key cannot sign")
	}
	return &CA{cert, key}, nil
}

// CertPEM returns the CA's certificate.
func (ca *CA) CertPEM() []byte {
	return encodeCert(ca.cert)
}

// KeyPEM returns the CA's private key in PKCS#8. Anyone who has it can speak as
// any device.
func (ca *CA) KeyPEM() ([]byte, error) {
	return keyPEM(ca.key)
}

// IssueServer makes a key and a certificate for a server that is reached under
// the given host names and IP addresses, at least one. It is valid from
// Backdate before now until lifetime after now, or as long as the CA.
func (ca *CA) IssueServer(names []string, now time.Time, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	dnsNames, ips, err := SplitNames(names)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    dnsNames,
		IPAddresses: ips,
	}
	if len(names[0]) <= 64 { // RFC 5280, ub-common-name
		template.Subject.CommonName = names[0]
	}
	return ca.issue(template, now, lifetime)
}

// IssueDevice makes a key and a client certificate whose common name is the
// device id: 1 to 64 of A-Z a-z 0-9 . _ : -. It is valid from Backdate before
// now until lifetime after now, or as long as the CA.
func (ca *CA) IssueDevice(id string, now time.Time, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	if !deviceid.Valid(id) {
		return nil, nil, fmt.Errorf("the device id %q is not %s", id, deviceid.Rule)
	}
	return ca.issue(deviceTemplate(id), now, lifetime)
}

// IssueDeviceFor makes a client certificate, like IssueDevice, for the key of a certificate signing request (PKCS #10, in
// PEM), which the device has made and keeps. The request must be signed with that key, and its common name be the
// device id or missing; nothing else is taken from it. The key must be ECDSA on P-256 or P-384, Ed25519, or RSA of 2048
// to 4096 bits.
func (ca *CA) IssueDeviceFor(id string, requestPEM []byte, now time.Time, lifetime time.Duration) (certPEM []byte, err error) {
	if !deviceid.Valid(id) {
		return nil, fmt.Errorf("the device id %q is not %s", id, deviceid.Rule)
	}
	block, _ := pem.Decode(requestPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("no certificate signing request in PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("no certificate signing request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate signing request is not signed with its own key: %w", err)
	}
	if cn := request.Subject.CommonName; cn != "" && cn != id {
		return nil, fmt.Errorf("the certificate signing request is for %q, not %q", cn, id)
	}
	if err := acceptable(request.PublicKey); err != nil {
		return nil, err
	}
	issued, err := ca.issueFor(request.PublicKey, deviceTemplate(id), now, lifetime)
	if err != nil {
		return nil, err
	}
	return encodeCert(issued), nil
}

func acceptable(key any) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits >= 2048 && bits <= 4096 {
			return nil
		}
	}
	return errors.New("the key of the certificate signing request must be ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")
}

func deviceTemplate(id string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: id},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// Inspect returns when the first certificate in PEM expires, and the SHA-256 of its DER encoding.
func Inspect(certPEM []byte) (notAfter time.Time, fingerprint [sha256.Size]byte, err error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return time.Time{}, fingerprint, errors.New("no certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, fingerprint, err
	}
	return cert.NotAfter, sha256.Sum256(cert.Raw), nil
}

// PublicKey returns the key of the first certificate in PEM.
func PublicKey(certPEM []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	return cert.PublicKey, nil
}

var hostName = regexp.MustCompile(`\A(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\z`)

// SplitNames sorts what a server is called into DNS names and IP addresses,
// each once. It refuses what is neither, and an empty list.
func SplitNames(names []string) (dnsNames []string, ips []net.IP, err error) {
	if len(names) == 0 {
		return nil, nil, errors.New("a server certificate needs at least one host name or IP address")
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			if !slices.ContainsFunc(ips, ip.Equal) {
				ips = append(ips, ip)
			}
			continue
		}
		if len(name) > 253 || !hostName.MatchString(name) {
			return nil, nil, fmt.Errorf("%q is neither a host name nor an IP address", name)
		}
		if !slices.Contains(dnsNames, name) {
			dnsNames = append(dnsNames, name)
		}
	}
	return dnsNames, ips, nil
}

// issue makes a key and a certificate for it.
func (ca *CA) issue(template *x509.Certificate, now time.Time, lifetime time.Duration) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	issued, err := ca.issueFor(private.Public(), template, now, lifetime)
	if err != nil {
		return nil, nil, err
	}
	if key, err = keyPEM(private); err != nil {
		return nil, nil, err
	}
	return encodeCert(issued), key, nil
}

// issueFor completes a leaf's template and signs it.
func (ca *CA) issueFor(public crypto.PublicKey, template *x509.Certificate, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	if lifetime <= 0 {
		return nil, fmt.Errorf("the certificate's lifetime %s must be positive", lifetime)
	}
	if !now.Before(ca.cert.NotAfter) {
		return nil, fmt.Errorf("the CA %q expired at %s; make a new one", ca.cert.Subject, ca.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	template.NotBefore = now.Add(-Backdate)
	template.NotAfter = now.Add(lifetime)
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	return sign(template, ca.cert, public, ca.key)
}

// sign gives template a random serial number of 128 bits and signs it.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // RFC 5280: positive
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
