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

	"mosquitto-bouncer/cmd/bouncerctl/bundle"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/plugin/textfile"
)

// The files that init makes in its directory.
const (
	bouncerTOML   = "bouncer.toml"
	mosquittoConf = "mosquitto.conf"
	pkiDir        = "pki"
	caCert        = "pki/ca.crt"
	caKey         = "pki/ca.key"
	serverCert    = "pki/server.crt"
	serverKey     = "pki/server.key"
	database      = "devices.db"
	commandKeys   = "command-keys.toml"
	stateDir      = "state"
	brokerDir     = "broker"
)

// newMaker returns a maker of bundles, with the CA that init made in configDir if certify, and the broker's address.
func newMaker(cfg *config.Config, configDir string, certify bool) (*bundle.Maker, error) {
	m := &bundle.Maker{Config: cfg}
	m.Host, m.Port = brokerAddress(configDir)
	if !certify {
		return m, nil
	}
	var err error
	m.CA, err = loadCA(configDir)
	return m, err
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
