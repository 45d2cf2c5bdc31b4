// Package device simulates IoT devices, honest and otherwise: an identity with certificate and secret, signed and
// forged envelopes, and connections over MQTT 5, MQTT 3.1.1 and packet by packet, always over TLS.
package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/envelope"
)

// Device is one identity: what a device holds, and the broker it talks to. It is not changed by its methods and safe
// for concurrent use; every connection is separate.
type Device struct {
	// ID is the common name of the certificate and the device_id of the envelopes.
	ID string
	// Secret is the HMAC key, as the text the registry holds.
	Secret []byte
	// Signer signs in place of the secret: of a device with a public key. nil: the secret does.
	Signer envelope.Signer
	// Addr is the broker's host:port.
	Addr string
	// Certificate is presented to the broker; one without a private key means none is presented.
	Certificate tls.Certificate
	// CA verifies the broker's certificate.
	CA *x509.CertPool
}

// ReadBundle reads a bundle directory as `bouncerctl device add` writes it: ca.crt, device.crt, device.key and secret. The
// id is the certificate's common name.
func ReadBundle(dir, addr string) (*Device, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "device.crt"), filepath.Join(dir, "device.key"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%q is not a device's bundle: %w; make one with bouncerctl device add", dir, err)
		}
		return nil, fmt.Errorf("device certificate in %q: %w", dir, err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("device certificate in %q: %w", dir, err)
	}
	secret, err := os.ReadFile(filepath.Join(dir, "secret"))
	if err != nil {
		return nil, fmt.Errorf("device secret: %w", err)
	}
	caPEM, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("CA certificate in %q holds no PEM certificate", dir)
	}
	return &Device{
		ID:          leaf.Subject.CommonName,
		Secret:      secret,
		Addr:        addr,
		Certificate: pair,
		CA:          pool,
	}, nil
}

// Anonymous returns the same device without its certificate.
func (d *Device) Anonymous() *Device {
	c := *d
	c.Certificate = tls.Certificate{}
	return &c
}

// Via returns the same device talking to another address, such as a second listener.
func (d *Device) Via(addr string) *Device {
	c := *d
	c.Addr = addr
	return &c
}

// DataTopic is the gated topic of the default configuration, device/<id>/data.
func (d *Device) DataTopic() string { return "device/" + d.ID + "/data" }

// ResponseTopic is device/<id>/response.
func (d *Device) ResponseTopic() string { return "device/" + d.ID + "/response" }

// TLS returns the client's side of the connection, TLS 1.2 and later, with the server's name verified.
func (d *Device) TLS() *tls.Config {
	host, _, err := net.SplitHostPort(d.Addr)
	if err != nil {
		host = d.Addr
	}
	c := &tls.Config{RootCAs: d.CA, ServerName: host, MinVersion: tls.VersionTLS12}
	if d.Certificate.PrivateKey != nil {
		c.Certificates = []tls.Certificate{d.Certificate}
	}
	return c
}

// Dial opens the TLS connection, without a word of MQTT. With TLS 1.3 a broker that wants a certificate and got none
// says so on the first read only.
func (d *Device) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&tls.Dialer{Config: d.TLS()}).DialContext(ctx, "tcp", d.Addr)
	if err != nil {
		return nil, fmt.Errorf("connecting %s to %s: %w", d.ID, d.Addr, err)
	}
	return conn, nil
}

// Message is a publish ready to be sent: an envelope and what it says.
type Message struct {
	DeviceID  string
	MessageID string
	Timestamp int64  // seconds since 1970
	Payload   []byte // as signed
	Bytes     []byte // the envelope
}

// Change alters a message before it is signed.
type Change func(*Message)

// SignedAt sets the timestamp.
func SignedAt(t time.Time) Change { return func(m *Message) { m.Timestamp = t.Unix() } }

// WithMessageID sets the message id.
func WithMessageID(id string) Change { return func(m *Message) { m.MessageID = id } }

// As sets the device_id: the message claims to be another device's.
func As(deviceID string) Change { return func(m *Message) { m.DeviceID = deviceID } }

// Sign makes an envelope around payload, one JSON value, kept byte for byte: now, with a fresh message id, as this
// device, unless changed. It panics when the envelope cannot be made, which is a mistake of the caller.
func (d *Device) Sign(payload string, changes ...Change) Message {
	m := Message{
		DeviceID:  d.ID,
		MessageID: uuid.NewString(),
		Timestamp: time.Now().Unix(),
		Payload:   []byte(payload),
	}
	for _, change := range changes {
		change(&m)
	}
	signer := d.Signer
	if signer == nil {
		signer = envelope.NewSigner(d.Secret)
	}
	signed, err := envelope.Sign(signer, m.DeviceID, m.Timestamp, m.MessageID, m.Payload)
	if err != nil {
		panic(fmt.Sprintf("device: signing as %q: %v", m.DeviceID, err))
	}
	m.Bytes = signed
	return m
}

// Tampered returns the message with the first occurrence of from in its envelope replaced by to, the signature left
// as it was. It panics when from does not occur.
func (m Message) Tampered(from, to string) Message {
	if !strings.Contains(string(m.Bytes), from) {
		panic(fmt.Sprintf("device: nothing to tamper with: %q is not in the envelope", from))
	}
	m.Bytes = []byte(strings.Replace(string(m.Bytes), from, to, 1))
	return m
}

// Resigned returns the message's envelope with another signature text, whatever it is.
func (m Message) Resigned(signature string) Message {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(m.Bytes, &members); err != nil {
		panic(fmt.Sprintf("device: the envelope is not a JSON object: %v", err))
	}
	was := strings.Trim(string(members["signature"]), `"`)
	return m.Tampered(was, signature)
}
