package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"mosquitto-bouncer/plugin/ascii"
	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/secret"
	"mosquitto-bouncer/plugin/textfile"
)

// secret reads the secret in the file that key names: 1 to 4096 characters of printable ASCII without blanks. One line end, LF
// or CRLF, at the end is not part of it.
func (d *document) secret(key string) secret.Secret {
	const most = 4096
	path, content, ok := d.content(key, 0o007)
	if !ok {
		return nil
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case s == "":
		d.problem(key, "%q is empty; put the secret into it", path)
	case len(s) > most:
		d.problem(key, "%q is longer than %d bytes; put only the secret into it", path, most)
	case !ascii.Visible(s):
		d.problem(key, "%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)
	default:
		return secret.Secret(s)
	}
	return nil
}

// commandKeys reads the gateway's own keys; nil if no file is named.
func (d *document) commandKeys(key string) *commandkey.Set {
	path, content, ok := d.content(key, 0o007)
	if !ok {
		return nil
	}
	keys, err := commandkey.Parse(content)
	if err != nil {
		d.problem(key, "%q: %v", path, err)
	}
	return keys
}

// certPool reads the certificates in the PEM file that key names; nil if none
// is named.
func (d *document) certPool(key string) *x509.CertPool {
	path, content, ok := d.content(key, 0)
	if !ok {
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		d.problem(key, "%q has no certificate in it; name a PEM file of CA certificates", path)
	}
	return pool
}

// keyPair reads a certificate and its private key; nil if none is named.
func (d *document) keyPair(certKey, keyKey string) []tls.Certificate {
	certPath, cert, hasCert := d.content(certKey, 0)
	keyPath, key, hasKey := d.content(keyKey, 0o007)
	switch {
	case d.isSet(certKey) && !d.isSet(keyKey):
		d.problem(certKey, "needs its private key; set %s", keyKey)
	case d.isSet(keyKey) && !d.isSet(certKey):
		d.problem(keyKey, "needs its certificate; set %s", certKey)
	}
	if !hasCert || !hasKey {
		return nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil { // one of them may have been renewed between the two readings: read both again
		if again, failed := readFile(certPath, 0); failed == nil {
			cert = again
		}
		if again, failed := readFile(keyPath, 0o007); failed == nil {
			key = again
		}
		pair, err = tls.X509KeyPair(cert, key)
	}
	if err != nil {
		d.problem(certKey, "%q and %q do not belong together (%v); name a PEM certificate and its unencrypted private key", certPath, keyPath, err)
		return nil
	}
	return []tls.Certificate{pair}
}

// content reads the file that key names. ok is false if it names none or the
// file cannot be had.
func (d *document) content(key string, forbidden fs.FileMode) (path string, content []byte, ok bool) {
	s, ok := d.text(key, "/etc/mosquitto-bouncer/file")
	if !ok || s == "" {
		return "", nil, false
	}
	path = d.absolute(s)
	content, err := readFile(path, forbidden)
	if openErr, tooOpen := errors.AsType[*openToOthersError](err); tooOpen {
		d.problem(key, "%q can be read or changed by every user (mode %04o); run: chmod o= %q", path, openErr.mode, path)
		return "", nil, false
	}
	if textfile.Is(err) {
		d.problem(key, "%q %v", path, err)
		return "", nil, false
	}
	if err != nil {
		d.problem(key, "%q cannot be read: %v; the broker's user must be able to read it", path, err)
		return "", nil, false
	}
	d.files = append(d.files, File{key, path})
	return path, content, true
}

// openToOthersError is a file with permission bits that it must not have.
type openToOthersError struct{ mode fs.FileMode }

func (e *openToOthersError) Error() string {
	return fmt.Sprintf("mode %04o lets every user in", e.mode)
}

// readFile returns the text of a regular file of at most MaxFileBytes, without a byte order mark.
// forbidden are the permission bits that the file must not have. The path is
// left out of the errors: the caller names it.
func readFile(path string, forbidden fs.FileMode) ([]byte, error) {
	content, err := textfile.ReadRegular(path, MaxFileBytes, 0, func(info fs.FileInfo) error {
		if info.Mode()&forbidden != 0 {
			return &openToOthersError{info.Mode().Perm()}
		}
		return nil
	})
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	if err != nil {
		return nil, err
	}
	return textfile.Decode(content)
}
