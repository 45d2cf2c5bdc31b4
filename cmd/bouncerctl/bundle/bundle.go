// Package bundle makes what a device gets: its secret, its certificate and the CA's, and a README that shows how to publish.
//
// A bundle has these files, each where there is such a thing:
//
//	ca.crt            the CA that signed the broker's certificate and the device's
//	device.crt        the device's certificate
//	device.key        its private key, mode 0600
//	secret            the HMAC key, mode 0600
//	command-keys.pem  the gateway's public keys, which verify commands to a device that has a public key itself
//	device.json       what the libraries for devices read: id, broker, topics, and the names of the files
//	README            what they are, and how to publish with them
package bundle

import (
	"crypto"
	"embed"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
)

//go:embed README.tmpl UPDATE.tmpl
var templateFiles embed.FS

var templates = template.Must(template.New("").
	Funcs(template.FuncMap{"sh": output.Shell}).
	ParseFS(templateFiles, "*.tmpl"))

// A Bundle is the files that a device needs.
type Bundle []File

// A File is one file of a bundle.
type File struct {
	Name    string
	Content []byte
	Mode    fs.FileMode
}

// A Certificate is what the registry notes of one.
type Certificate struct {
	Expires     time.Time // zero: there is none
	Fingerprint registry.Fingerprint
	PublicKey   crypto.PublicKey
}

// A Credential is what a new device signs with: a secret, a key of its own, or the key of its certificate.
type Credential struct {
	Secret      []byte
	Key         *publickey.Key // in place of a secret
	Certificate bool           // the certificate's key signs, in place of both
}

// A Maker makes bundles. Safe for concurrent use.
type Maker struct {
	Config  *config.Config // for the topics in the README
	CA      *pki.CA        // nil: no certificates
	Request []byte         // a certificate signing request in PEM; nil: the bundle has a private key too
	Host    string         // of the broker, for the README
	Port    int            // likewise
}

// readmeValues fill README.tmpl and UPDATE.tmpl.
type readmeValues struct {
	ID, Topic, Response string
	Host                string
	Port                int
	NotAfter            string // "" if the bundle has no certificate
	OwnKey              bool   // the device has the certificate's private key, the bundle has not
	Algorithm           string // of the public key that the device signs with; "" with a secret
	SigningKey          string // the name of the file with its private half
	Secret              bool   // the bundle has a secret
	Ends                string // when the old secret ends; "" at once
	CommandKeys         bool   // the bundle has the gateway's public keys
}

// New makes the files for a new device, and returns the public key that it signs with; nil: it has a secret.
func (m *Maker) New(id string, c Credential) (Bundle, Certificate, *publickey.Key, error) {
	b, cert, err := m.certificate(id)
	if err != nil {
		return nil, Certificate{}, nil, err
	}
	values := readmeValues{SigningKey: "signing.key"}
	key := c.Key
	if c.Certificate {
		values.SigningKey = "device.key"
		if key, err = publickey.Of(cert.PublicKey); err != nil {
			return nil, Certificate{}, nil, fmt.Errorf("the certificate's key cannot sign messages: %w", err)
		}
	}
	if key != nil {
		values.Algorithm = string(key.Algorithm())
	}
	b, values.CommandKeys = m.addCommandKeys(b, key)
	b, err = m.finish(b, cert, "README.tmpl", id, c.Secret, values)
	return b, cert, key, err
}

// Update makes the files for a device that has a bundle: a new secret, or without one a new certificate. ends is when the
// old secret does, or the old certificate; zero: at once. signing is the key of the old certificate if the device signs
// with that, else nil.
func (m *Maker) Update(id string, secret []byte, signing *publickey.Key, ends time.Time) (Bundle, Certificate, error) {
	b, cert, err := m.certificate(id)
	if err != nil {
		return nil, Certificate{}, err
	}
	var values readmeValues
	if signing != nil {
		key, err := publickey.Of(cert.PublicKey)
		if err != nil {
			return nil, Certificate{}, fmt.Errorf("the certificate's key cannot sign messages: %w", err)
		}
		if !key.Equal(signing) {
			values.Algorithm, values.SigningKey = string(key.Algorithm()), "device.key"
		}
		b, values.CommandKeys = m.addCommandKeys(b, key)
	}
	if !ends.IsZero() {
		values.Ends = output.Instant(ends)
	}
	b, err = m.finish(b, cert, "UPDATE.tmpl", id, secret, values)
	return b, cert, err
}

const commandKeysFile = "command-keys.pem"

// addCommandKeys adds the gateway's public keys for a device that signs with key; any tells whether there are such. nil: it has a
// secret, and needs none.
func (m *Maker) addCommandKeys(b Bundle, key *publickey.Key) (_ Bundle, any bool) {
	if key == nil {
		return b, false
	}
	var text []byte
	for _, k := range m.Config.Command.Keys.Valid(key.Algorithm(), time.Now()) {
		text = append(text, k.PEM()...)
	}
	if text == nil {
		return b, false
	}
	return append(b, File{commandKeysFile, text, 0o640}), true
}

// finish adds the secret, and a README with values and what is the same for all.
func (m *Maker) finish(b Bundle, cert Certificate, readme, id string, secret []byte, values readmeValues) (Bundle, error) {
	if secret != nil {
		b = append(b, File{"secret", secret, 0o600})
	}
	values.ID = id
	values.Topic = strings.Replace(m.Config.Publish.Topics[0], "+", id, 1)
	values.Response = strings.Replace(m.Config.Response.Topic, config.DeviceID, id, 1)
	values.Host, values.Port = m.Host, m.Port
	values.OwnKey, values.Secret = m.Request != nil, secret != nil
	if !cert.Expires.IsZero() {
		values.NotAfter = cert.Expires.UTC().Format(time.DateOnly)
	}
	if readme == "README.tmpl" || values.Algorithm != "" { // a new key may be of another algorithm
		text, err := m.describe(id, &values)
		if err != nil {
			return nil, err
		}
		b = append(b, File{"device.json", text, 0o640})
	}
	var text strings.Builder
	if err := templates.ExecuteTemplate(&text, readme, values); err != nil {
		return nil, err
	}
	return append(b, File{"README", []byte(text.String()), 0o640}), nil
}

// certificate makes the files of the device's certificate, none without a CA.
func (m *Maker) certificate(id string) (Bundle, Certificate, error) {
	if m.CA == nil {
		return nil, Certificate{}, nil
	}
	var cert, key []byte
	var err error
	if m.Request != nil {
		cert, err = m.CA.IssueDeviceFor(id, m.Request, time.Now(), pki.LeafLifetime)
	} else {
		cert, key, err = m.CA.IssueDevice(id, time.Now(), pki.LeafLifetime)
	}
	if err != nil {
		return nil, Certificate{}, err
	}
	expires, fingerprint, err := pki.Inspect(cert)
	if err != nil {
		return nil, Certificate{}, err
	}
	public, err := pki.PublicKey(cert)
	if err != nil {
		return nil, Certificate{}, err
	}
	b := Bundle{{"ca.crt", m.CA.CertPEM(), 0o640}, {"device.crt", cert, 0o640}}
	if key != nil {
		b = append(b, File{"device.key", key, 0o600})
	}
	return b, Certificate{expires, fingerprint, public}, nil
}

// Write makes the directory, which must not exist, and the files in it. If it fails, the caller undoes c.
func (b Bundle) Write(c *files.Creation, dir string) error {
	if err := c.Parents(dir, 0o700); err != nil {
		return err
	}
	if err := c.Directory(dir, 0o700, nil); err != nil {
		return err
	}
	for _, f := range b {
		if err := c.File(filepath.Join(dir, f.Name), f.Content, f.Mode, nil); err != nil {
			return err
		}
	}
	return nil
}

// Names returns the names of the files.
func (b Bundle) Names() []string {
	names := make([]string, len(b))
	for i, f := range b {
		names[i] = f.Name
	}
	return names
}
