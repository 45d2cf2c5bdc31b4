package config

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
)

// Limits of publish.issuers.
const (
	maxIssuerFiles = 16
	maxIssuers     = 32
)

// issuers reads the CA certificates in a list of PEM files, as DER. None: nil.
func (d *document) issuers(key string) (all [][]byte) {
	v, set := d.lookup(key)
	if !set {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		d.problem(key, "is %s; write a list of files, for example [\"ca.crt\"]", kindOf(v))
		return nil
	}
	if len(list) > maxIssuerFiles {
		d.problem(key, "names %d files; use at most %d", len(list), maxIssuerFiles)
		return nil
	}
	for _, item := range list {
		path, ok := item.(string)
		if !ok || path == "" {
			d.problem(key, "holds %s; write file names in quotes, for example [\"ca.crt\"]", kindOf(item))
			return nil
		}
		for _, der := range d.issuersIn(key, path) {
			if !slices.ContainsFunc(all, func(have []byte) bool { return string(have) == string(der) }) {
				all = append(all, der)
			}
		}
	}
	if len(all) > maxIssuers {
		d.problem(key, "the files hold %d certificates; use at most %d", len(all), maxIssuers)
		return nil
	}
	return all
}

// issuersIn reads the CA certificates in one file.
func (d *document) issuersIn(key, path string) (all [][]byte) {
	path = d.absolute(path)
	content, err := readFile(path, 0o002)
	if open, tooOpen := errors.AsType[*openToOthersError](err); tooOpen {
		d.problem(key, "%q can be changed by every user (mode %04o); run: chmod o-w %q", path, open.mode, path)
		return nil
	}
	if err != nil {
		d.problem(key, "%q cannot be read: %v; the broker's user must be able to read it", path, err)
		return nil
	}
	d.files = append(d.files, File{key, path})
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			d.problem(key, "%q holds a %s; name a file with only CA certificates", path, block.Type)
			return nil
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			d.problem(key, "%q holds a certificate that cannot be read: %v", path, err)
			return nil
		case certificate.BasicConstraintsValid && !certificate.IsCA:
			d.problem(key, "%q holds the certificate of %q, which is not a CA; name the CA that signs the devices' certificates", path, certificate.Subject)
			return nil
		}
		all = append(all, block.Bytes)
	}
	if len(all) == 0 {
		d.problem(key, "%q holds no certificate in PEM; name the file of the CA that signs the devices' certificates", path)
	}
	return all
}
