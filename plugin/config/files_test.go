package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/secret"
)

func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	load := func() (secret.Secret, error) {
		c, err := parse("b.toml", dir, []byte("[backend]\nbearer_token_file = \"token\"\n"))
		if err != nil {
			return nil, err
		}
		return c.Backend.BearerToken, nil
	}
	const prefix = "b.toml:2: backend.bearer_token_file: "

	for _, test := range []struct {
		content string
		mode    fs.FileMode
		secret  string
		problem string
	}{
		{"token", 0o600, "token", ""},
		{"token\n", 0o640, "token", ""},
		{"token\r\n", 0o400, "token", ""},
		{"a blank", 0o600, "", fmt.Sprintf("%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)},
		{strings.Repeat("a", 4096) + "\n", 0o600, strings.Repeat("a", 4096), ""},
		{strings.Repeat("a", 4097), 0o600, "", fmt.Sprintf("%q is longer than 4096 bytes; put only the secret into it", path)},
		{"", 0o600, "", fmt.Sprintf("%q is empty; put the secret into it", path)},
		{"\n", 0o600, "", fmt.Sprintf("%q is empty; put the secret into it", path)},
		{"token\n\n", 0o600, "", fmt.Sprintf("%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)},
		{"tok\x00en", 0o600, "", fmt.Sprintf("%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)},
		{"tok\xffen", 0o600, "", fmt.Sprintf("%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)},
		{"token", 0o644, "", fmt.Sprintf("%q can be read or changed by every user (mode 0644); run: chmod o= %q", path, path)},
		{"token", 0o602, "", fmt.Sprintf("%q can be read or changed by every user (mode 0602); run: chmod o= %q", path, path)},
		{strings.Repeat("a", MaxFileBytes+1), 0o600, "", fmt.Sprintf("%q cannot be read: larger than 1048576 bytes; the broker's user must be able to read it", path)},
	} {
		write(t, dir, "token", []byte(test.content), test.mode)
		secret, err := load()
		switch {
		case test.problem == "" && (err != nil || string(secret) != test.secret):
			t.Errorf("%.20q mode %04o: got %.20q, %v", test.content, test.mode, string(secret), err)
		case test.problem != "" && (err == nil || err.Error() != prefix+test.problem):
			t.Errorf("%.20q mode %04o:\n got %v\nwant %s", test.content, test.mode, err, prefix+test.problem)
		}
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := load(); err == nil || err.Error() != prefix+fmt.Sprintf("%q cannot be read: no such file or directory; the broker's user must be able to read it", path) {
		t.Errorf("no file: %v", err)
	}
	// A FIFO without a writer must not hang the broker's start.
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(); err == nil || err.Error() != prefix+fmt.Sprintf("%q cannot be read: not a regular file; the broker's user must be able to read it", path) {
		t.Errorf("FIFO: %v", err)
	}
}

func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t)
	_, otherKey := selfSigned(t)
	write(t, dir, "cert.pem", cert, 0o644)
	write(t, dir, "key.pem", key, 0o600)
	write(t, dir, "other.pem", otherKey, 0o600)
	write(t, dir, "open.pem", key, 0o644)
	in := func(name string) string { return filepath.Join(dir, name) }

	c, err := parse("b.toml", dir, []byte("[backend]\nurl = \"https://h/\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Backend.TLS; got == nil || got.MinVersion != tls.VersionTLS12 || got.RootCAs != nil || got.Certificates != nil {
		t.Errorf("https without files: TLS = %+v", got)
	}

	const https = "[backend]\nurl = \"https://h/\"\n"
	for source, want := range map[string]string{
		https + "cert_file = \"cert.pem\"\n":                              "3: backend.cert_file: needs its private key; set backend.key_file",
		https + "key_file = \"key.pem\"\n":                                "3: backend.key_file: needs its certificate; set backend.cert_file",
		https + "cert_file = \"cert.pem\"\nkey_file = \"other.pem\"\n":    fmt.Sprintf("3: backend.cert_file: %q and %q do not belong together (tls: private key does not match public key); name a PEM certificate and its unencrypted private key", in("cert.pem"), in("other.pem")),
		https + "cert_file = \"cert.pem\"\nkey_file = \"open.pem\"\n":     fmt.Sprintf("4: backend.key_file: %q can be read or changed by every user (mode 0644); run: chmod o= %q", in("open.pem"), in("open.pem")),
		https + "ca_file = \"key.pem\"\n":                                 fmt.Sprintf("3: backend.ca_file: %q has no certificate in it; name a PEM file of CA certificates", in("key.pem")),
		https + "ca_file = \"none.pem\"\n":                                fmt.Sprintf("3: backend.ca_file: %q cannot be read: no such file or directory; the broker's user must be able to read it", in("none.pem")),
		https + "ca_file = \".\"\n":                                       fmt.Sprintf("3: backend.ca_file: %q cannot be read: not a regular file; the broker's user must be able to read it", dir),
		"[command]\nkeys_file = \"key.pem\"\n":                            fmt.Sprintf("2: command.keys_file: %q: not a file of command keys; make one with bouncerctl command-key make", in("key.pem")),
		"[command]\nkeys_file = \"open.pem\"\n":                           fmt.Sprintf("2: command.keys_file: %q can be read or changed by every user (mode 0644); run: chmod o= %q", in("open.pem"), in("open.pem")),
		"[backend]\n\nca_file = \"cert.pem\"\n":                           "3: backend.ca_file: has no effect with an http URL; use https in backend.url, or remove the line",
		"[backend]\n\ncert_file = \"cert.pem\"\nkey_file = \"key.pem\"\n": "3: backend.cert_file: has no effect with an http URL; use https in backend.url, or remove the line\nb.toml:4: backend.key_file: has no effect with an http URL; use https in backend.url, or remove the line",
	} {
		_, err := parse("b.toml", dir, []byte(source))
		if err == nil || err.Error() != "b.toml:"+want {
			t.Errorf("%q:\n got %v\nwant b.toml:%s", source, err, want)
		}
	}
}

func write(t *testing.T, dir, name string, content []byte, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func selfSigned(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func TestRegistryKey(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{"00", strings.Repeat("0", 63), strings.Repeat("x", 64), strings.Repeat("0", 66)} {
		write(t, dir, "key", []byte(content), 0o600)
		_, err := parse("bouncer.toml", dir, []byte("[registry]\nkey_file = \"key\"\n"))
		if want := "bouncer.toml:2: registry.key_file: does not hold a key, which is 64 hexadecimal digits; make one with bouncerctl registry key FILE"; err == nil || err.Error() != want {
			t.Errorf("%q: %v", content, err)
		}
	}
}
