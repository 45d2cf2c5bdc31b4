package main

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/pki"
)

// bundle is the files that a device needs.
type bundle []bundleFile

type bundleFile struct {
	name    string
	content []byte
	mode    fs.FileMode
}

// readmeValues fill README.tmpl.
type readmeValues struct {
	ID, Topic, Response string
	Host                string
	Port                int
	NotAfter            string // "" if the bundle has no certificate
}

// newBundle makes the files for a device. The CA and what is known of the
// broker's address are taken from configDir, where init put them.
func newBundle(id string, secret []byte, cfg *config.Config, configDir string, noCert bool) (bundle, error) {
	readme := readmeValues{
		ID:       id,
		Topic:    strings.Replace(cfg.Publish.Topics[0], "+", id, 1),
		Response: strings.Replace(cfg.Response.Topic, config.DeviceID, id, 1),
	}
	readme.Host, readme.Port = brokerAddress(configDir)
	var b bundle
	if !noCert {
		ca, err := loadCA(configDir)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		cert, key, err := ca.IssueDevice(id, now, pki.LeafLifetime)
		if err != nil {
			return nil, err
		}
		notAfter := now.Add(pki.LeafLifetime)
		if notAfter.After(ca.NotAfter()) {
			notAfter = ca.NotAfter()
		}
		readme.NotAfter = notAfter.UTC().Format(time.DateOnly)
		b = bundle{
			{"ca.crt", ca.CertPEM(), 0o640},
			{"device.crt", cert, 0o640},
			{"device.key", key, 0o600},
		}
	}
	text, err := render("README.tmpl", readme)
	if err != nil {
		return nil, err
	}
	return append(b,
		bundleFile{"secret", secret, 0o600},
		bundleFile{"README", text, 0o640},
	), nil
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
	cert, certErr := os.ReadFile(certFile)
	key, keyErr := os.ReadFile(keyFile)
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
	if content, err := os.ReadFile(filepath.Join(configDir, serverCert)); err == nil {
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
	conf, err := os.ReadFile(filepath.Join(configDir, mosquittoConf))
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
