package device

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/textfile"
)

// StateDir is the state directory's name in a bundle, unless Options.State names another.
const StateDir = "state"

// maxFile bounds each file of a bundle, in bytes.
const maxFile = 1 << 20

// bundleFile is device.json.
type bundleFile struct {
	DeviceID    string `json:"device_id"`
	Host        string `json:"host"`
	Port        int    `json:"port"`
	Algorithm   string `json:"algorithm"`
	CA          string `json:"ca"`
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
	Secret      string `json:"secret"`
	SigningKey  string `json:"signing_key"`
	CommandKeys string `json:"command_keys"`
	Topics      Topics `json:"topics"`
	Tolerance   int64  `json:"tolerance"` // the gateway's, in seconds; 0: not known
}

// FromBundle opens the Device of a bundle: the directory that `bouncerctl device add` made, with device.json.
func FromBundle(dir string, options Options) (*Device, error) {
	if options.State == "" {
		options.State = filepath.Join(dir, StateDir)
	}
	config, err := ReadBundle(dir, options)
	if err != nil {
		return nil, err
	}
	return Open(config, options)
}

// ReadBundle reads what FromBundle opens.
func ReadBundle(dir string, options Options) (Config, error) {
	r := reader{dir: dir}
	var b bundleFile
	if err := json.Unmarshal(r.file("device.json", "device.json"), &b); err != nil && r.err == nil {
		r.err = fmt.Errorf("device: device.json: %w", err)
	}
	if r.err != nil {
		return Config{}, r.err
	}
	if b.Host == "" || b.Port < 1 || b.Port > 65535 {
		return Config{}, errors.New("device: device.json: host or port is missing")
	}
	if b.Tolerance < 0 || b.Tolerance > maxInteger/int64(time.Second) {
		return Config{}, errors.New("device: device.json: the tolerance is out of range")
	}
	config := Config{
		Tolerance: time.Duration(b.Tolerance) * time.Second,
		DeviceID:  b.DeviceID, Address: net.JoinHostPort(b.Host, strconv.Itoa(b.Port)), Topics: b.Topics, Credential: options.Credential,
		TLS: &tls.Config{RootCAs: x509.NewCertPool(), ServerName: b.Host, MinVersion: tls.VersionTLS12},
	}
	if ca := r.file("ca", b.CA); r.err == nil && !config.TLS.RootCAs.AppendCertsFromPEM(ca) {
		return Config{}, fmt.Errorf("device: %s has no certificate in PEM", b.CA)
	}
	if options.Certificate != nil {
		config.TLS.Certificates = []tls.Certificate{*options.Certificate}
	} else {
		certificate, key := r.file("certificate", b.Certificate), r.file("key", b.Key)
		if r.err != nil {
			return Config{}, r.err
		}
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return Config{}, fmt.Errorf("device: %s and %s: %w", b.Certificate, b.Key, err)
		}
		config.TLS.Certificates = []tls.Certificate{pair}
	}
	if config.Credential == nil {
		config.Credential = r.credential(b)
	}
	if r.err == nil && config.Credential.Algorithm() != b.Algorithm {
		r.err = fmt.Errorf("device: the algorithm is %q in device.json, and the key's is %q", b.Algorithm, config.Credential.Algorithm())
	}
	return config, r.err
}

// A reader reads files of a bundle until one cannot be read.
type reader struct {
	dir string
	err error
}

// file reads the file that a member of device.json names.
func (r *reader) file(member, name string) []byte {
	if r.err != nil {
		return nil
	}
	if name == "" {
		r.err = fmt.Errorf("device: device.json has no %q", member)
		return nil
	}
	content, err := textfile.ReadRegular(filepath.Join(r.dir, name), maxFile, 0, nil)
	if err != nil {
		r.err = fmt.Errorf("device: %s of the bundle: %w", member, err)
	}
	return content
}

func (r *reader) credential(b bundleFile) (c *Credential) {
	var err error
	switch b.Algorithm {
	case hmacSHA256:
		secret := r.file("secret", b.Secret)
		if r.err != nil {
			return nil
		}
		c, err = Secret(bytes.TrimSuffix(secret, []byte("\n")))
	case string(publickey.Ed25519), string(publickey.P256):
		private := r.file("signing_key", b.SigningKey)
		var commandKeys []byte
		if b.CommandKeys != "" {
			commandKeys = r.file("command_keys", b.CommandKeys)
		}
		if r.err != nil {
			return nil
		}
		c, err = ReadPrivateKey(private, commandKeys)
	default:
		err = fmt.Errorf("device: device.json: the algorithm %q is not known", b.Algorithm)
	}
	if err != nil {
		r.err = err
	}
	return c
}
