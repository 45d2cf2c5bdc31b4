package check

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"slices"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/brokerconf"
)

// soonExpired is how long before its end a certificate is worth a warning.
const soonExpired = 30 * 24 * time.Hour

// checkCertificate looks at a server's certificate.
func (k *checker) checkCertificate(line brokerconf.Line, i int) {
	content, err := os.ReadFile(line.Value)
	if err != nil {
		return // said already
	}
	certificates := parseCertificates(content)
	if len(certificates) == 0 {
		k.error(at(line), "%s has no certificate in PEM; name the server's certificate", line.Value)
		return
	}
	cert := certificates[0]
	k.expiry(line, cert)
	if keyfile, found := k.last("keyfile", i); !found {
		k.error(at(line), "there is no keyfile for this certificate; add: keyfile FILE")
	} else if key, err := os.ReadFile(keyfile.Value); err == nil {
		if _, err := tls.X509KeyPair(content, key); err != nil && !strings.Contains(string(key), "ENCRYPTED") {
			k.error(at(keyfile), "%s is not the key of %s (%v); name the one that belongs to it", keyfile.Value, line.Value, err)
		}
	}
	if len(cert.DNSNames) == 0 && len(cert.IPAddresses) == 0 {
		k.error(at(line), "%s is for no host (it has no subject alternative name): devices that verify it do not connect; make another with the names under which they reach the broker", line.Value)
		return
	}
	for _, host := range k.Hosts {
		if err := cert.VerifyHostname(host); err != nil {
			names := slices.Clone(cert.DNSNames)
			for _, ip := range cert.IPAddresses {
				names = append(names, ip.String())
			}
			k.error(at(line), "%s is not for %s but for %s: devices that come by that name do not connect; make another", line.Value, host, strings.Join(names, ", "))
		}
	}
}

func (k *checker) checkCA(line brokerconf.Line) {
	content, err := os.ReadFile(line.Value)
	if err != nil {
		return
	}
	certificates := parseCertificates(content)
	if len(certificates) == 0 {
		k.error(at(line), "%s has no certificate in PEM; name the file with your devices' CA", line.Value)
	}
	for _, cert := range certificates {
		k.expiry(line, cert)
	}
}

func (k *checker) expiry(line brokerconf.Line, cert *x509.Certificate) {
	when := cert.NotAfter.UTC().Format(time.DateOnly)
	switch {
	case k.Now.After(cert.NotAfter):
		k.error(at(line), "the certificate of %q in %s expired on %s; make another", cert.Subject, line.Value, when)
	case k.Now.Before(cert.NotBefore):
		k.error(at(line), "the certificate of %q in %s is not valid before %s; correct the clock, or make another", cert.Subject, line.Value, cert.NotBefore.UTC().Format(time.RFC3339))
	case k.Now.Add(soonExpired).After(cert.NotAfter):
		k.warn(at(line), "the certificate of %q in %s expires on %s; make another in time", cert.Subject, line.Value, when)
	}
}

func parseCertificates(content []byte) (all []*x509.Certificate) {
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return all
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			all = append(all, cert)
		}
	}
}
