package main

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/textfile"
)

// bundle is the files that a device needs.
type bundle []bundleFile

type bundleFile struct {
	name    string
	content []byte
	mode    fs.FileMode
}

// readmeValues fill README.tmpl and UPDATE.tmpl.
type readmeValues struct {
	ID, Topic, Response string
	Host                string
	Port                int
	NotAfter            string // "" if the bundle has no certificate
	OwnKey              bool   // the device has its private key, the bundle has not
	Secret              bool   // the bundle has a secret
	Ends                string // when the old secret ends; "" at once
}

// A maker makes bundles. Safe for concurrent use.
type maker struct {
	cfg     *config.Config
	ca      *pki.CA // nil: no certificates
	request []byte  // a certificate signing request, if there is one
	host    string
	port    int
}

// certificate is what the registry notes of one.
type certificate struct {
	expires     time.Time // zero: there is none
	fingerprint registry.Fingerprint
}

// newMaker takes the CA and what is known of the broker's address from
// configDir, where init put them.
func newMaker(cfg *config.Config, configDir string, certify bool) (*maker, error) {
	m := &maker{cfg: cfg}
	m.host, m.port = brokerAddress(configDir)
	if !certify {
		return m, nil
	}
	var err error
	m.ca, err = loadCA(configDir)
	return m, err
}

// bundle makes the files for a device.
func (m *maker) bundle(id string, secret []byte) (bundle, certificate, error) {
	b, cert, err := m.certificate(id)
	if err != nil {
		return nil, certificate{}, err
	}
	readme := m.readme(id, cert)
	readme.Secret = true
	text, err := render("README.tmpl", readme)
	if err != nil {
		return nil, certificate{}, err
	}
	return append(b, bundleFile{"secret", secret, 0o600}, bundleFile{"README", text, 0o640}), cert, nil
}

// certificate makes the files of the device's certificate, if there is to be
// one.
func (m *maker) certificate(id string) (bundle, certificate, error) {
	if m.ca == nil {
		return nil, certificate{}, nil
	}
	var cert, key []byte
	var err error
	if m.request != nil {
		cert, err = m.ca.IssueDeviceFor(id, m.request, time.Now(), pki.LeafLifetime)
	} else {
		cert, key, err = m.ca.IssueDevice(id, time.Now(), pki.LeafLifetime)
	}
	if err != nil {
		return nil, certificate{}, err
	}
	expires, fingerprint, err := pki.Inspect(cert)
	if err != nil {
		return nil, certificate{}, err
	}
	b := bundle{{"ca.crt", m.ca.CertPEM(), 0o640}, {"device.crt", cert, 0o640}}
	if key != nil {
		b = append(b, bundleFile{"device.key", key, 0o600})
	}
	return b, certificate{expires, fingerprint}, nil
}

// update makes the files for a device that has a bundle: a new secret, or a new
// certificate. ends is when the old secret does; zero: at once.
func (m *maker) update(id string, secret []byte, ends time.Time) (bundle, certificate, error) {
	b, cert, err := m.certificate(id)
	if err != nil {
		return nil, certificate{}, err
	}
	readme := m.readme(id, cert)
	if secret != nil {
		readme.Secret = true
		b = append(b, bundleFile{"secret", secret, 0o600})
	}
	if !ends.IsZero() {
		readme.Ends = ends.UTC().Format(time.RFC3339)
	}
	text, err := render("UPDATE.tmpl", readme)
	if err != nil {
		return nil, certificate{}, err
	}
	return append(b, bundleFile{"README", text, 0o640}), cert, nil
}

func (m *maker) readme(id string, cert certificate) readmeValues {
	r := readmeValues{
		ID:       id,
		Topic:    strings.Replace(m.cfg.Publish.Topics[0], "+", id, 1),
		Response: strings.Replace(m.cfg.Response.Topic, config.DeviceID, id, 1),
		Host:     m.host,
		Port:     m.port,
		OwnKey:   m.request != nil,
	}
	if !cert.expires.IsZero() {
		r.NotAfter = cert.expires.UTC().Format(time.DateOnly)
	}
	return r
}

// write makes the directory, which must not exist, and the files in it; the
// caller undoes c if it fails.
func (b bundle) write(c *creation, dir string) error {
	if err := c.parents(dir, 0o700); err != nil {
		return err
	}
	if err := c.directory(dir, 0o700, nil); err != nil {
		return err
	}
	for _, f := range b {
		if err := c.file(filepath.Join(dir, f.name), f.content, f.mode, nil); err != nil {
			return err
		}
	}
	return nil
}

func (b bundle) names() []string {
	names := make([]string, len(b))
	for i, f := range b {
		names[i] = f.name
	}
	return names
}

// loadCA reads the CA that init made.
func loadCA(configDir string) (*pki.CA, error) {
	certFile, keyFile := filepath.Join(configDir, caCert), filepath.Join(configDir, caKey)
	cert, certErr := textfile.ReadFile(certFile)
	key, keyErr := textfile.ReadFile(keyFile)
	if err := errors.Join(certErr, keyErr); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no CA in %s; use --no-cert if the device has a certificate of another CA",
			filepath.Join(configDir, pkiDir))
	}
	for _, err := range []error{certErr, keyErr} {
		if err != nil {
			return nil, fmt.Errorf("the CA cannot be read: %w; run bouncerctl as the owner of %s", err, keyFile)
		}
	}
	ca, err := pki.LoadCA(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", certFile, keyFile, err)
	}
	return ca, nil
}

// brokerAddress is where devices reach the broker, as far as the files of init
// tell: the first name in the server's certificate, and the first listener's
// port. Only the README shows it.
func brokerAddress(configDir string) (host string, port int) {
	host, port = "localhost", defaultListen
	if content, err := textfile.ReadFile(filepath.Join(configDir, serverCert)); err == nil {
		if block, _ := pem.Decode(content); block != nil {
			if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
				switch {
				case len(cert.DNSNames) > 0:
					host = cert.DNSNames[0]
				case len(cert.IPAddresses) > 0:
					host = cert.IPAddresses[0].String()
				}
			}
		}
	}
	conf, err := textfile.ReadFile(filepath.Join(configDir, mosquittoConf))
	if err != nil {
		return host, port
	}
	for lines := bufio.NewScanner(bytes.NewReader(conf)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "listener" {
			if n, err := strconv.Atoi(fields[1]); err == nil {
				return host, n
			}
		}
	}
	return host, port
}
