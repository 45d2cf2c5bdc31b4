// Package publickey reads the public keys that devices sign with, and verifies signatures with them: Ed25519 (RFC 8032), and
// ECDSA on P-256 with SHA-256 (FIPS 186-5). Every signature has 64 bytes.
package publickey

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// SignatureLen is the length of every signature: R || S of Ed25519, r || s of ECDSA, each 32 bytes, r and s with the most
// significant byte first.
const SignatureLen = 64

// An Algorithm is what a key signs with. It follows from the key and from nothing else.
type Algorithm string

// The algorithms.
const (
	Ed25519 Algorithm = "Ed25519"
	P256    Algorithm = "ECDSA P-256"
)

// A Fingerprint is the SHA-256 of a key as X.509 encodes it (DER, SubjectPublicKeyInfo).
type Fingerprint [sha256.Size]byte

// String returns the fingerprint as 64 hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// A Key is a public key that can be used. The zero value verifies nothing. It is immutable, and safe for concurrent use.
type Key struct {
	ed25519     ed25519.PublicKey // nil: another algorithm
	p256        *ecdsa.PublicKey  // likewise
	fingerprint Fingerprint
}

// Parse reads a key in DER: a SubjectPublicKeyInfo (RFC 5280), in the one form that each key has.
func Parse(der []byte) (*Key, error) {
	read, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errEncoding
	}
	k, err := Of(read)
	if err != nil {
		return nil, err
	}
	if k.fingerprint != FingerprintOf(der) {
		return nil, errEncoding // another encoding of the same key
	}
	return k, nil
}

// Of returns a key of the standard library as a Key: *ecdsa.PublicKey or ed25519.PublicKey, as a certificate has it.
func Of(key crypto.PublicKey) (*Key, error) {
	k := new(Key)
	switch key := key.(type) {
	case ed25519.PublicKey:
		if err := checkEd25519(key); err != nil {
			return nil, err
		}
		k.ed25519 = append(k.ed25519, key...)
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, otherType("an ECDSA key on " + key.Curve.Params().Name)
		}
		if _, err := key.ECDH(); err != nil { // the point is on the curve, and not the one at infinity
			return nil, errPoint
		}
		own := *key
		k.p256 = &own
	case *rsa.PublicKey:
		return nil, otherType("an RSA key")
	case *ecdh.PublicKey:
		return nil, otherType("a key for key agreement, which cannot sign")
	default:
		return nil, otherType("a key of another type")
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, errEncoding
	}
	k.fingerprint = FingerprintOf(der)
	return k, nil
}

// ParsePEM reads a file with one public key.
func ParsePEM(text []byte) (*Key, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("not a public key in PEM, which begins with -----BEGIN PUBLIC KEY-----")
	}
	switch block.Type {
	case "PUBLIC KEY":
	case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY":
		return nil, errors.New("a private key, which belongs on the device alone; make its public half: openssl pkey -in FILE -pubout")
	default:
		return nil, fmt.Errorf("a PEM file of type %q, not a public key, which begins with -----BEGIN PUBLIC KEY-----", block.Type)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("more than one key; give one")
	}
	return Parse(block.Bytes)
}

// Algorithm returns what the key signs with; "" of the zero value.
func (k *Key) Algorithm() Algorithm {
	switch {
	case k.ed25519 != nil:
		return Ed25519
	case k.p256 != nil:
		return P256
	}
	return ""
}

// Fingerprint returns the key's.
func (k *Key) Fingerprint() Fingerprint { return k.fingerprint }

// FingerprintOf returns the fingerprint of a key in DER.
func FingerprintOf(der []byte) Fingerprint { return sha256.Sum256(der) }

// Equal reports whether two keys are the same.
func (k *Key) Equal(other *Key) bool { return k.fingerprint == other.fingerprint }

// Text returns the key as one line: its DER in base64, as it is between the first and the last line of PEM.
func (k *Key) Text() string { return base64.StdEncoding.EncodeToString(k.der()) }

// PEM returns the key as ParsePEM reads it.
func (k *Key) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der()}))
}

func (k *Key) der() []byte {
	var key any = k.ed25519
	if k.p256 != nil {
		key = k.p256
	}
	der, _ := x509.MarshalPKIXPublicKey(key) // Of has done so
	return der
}

// ParseText reads what Text returns.
func ParseText(text string) (*Key, error) {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("not a public key in base64, as it is between the lines of PEM")
	}
	return Parse(der)
}

// Verify reports whether the signature is the key's over text. It takes a public value and hides nothing by its timing.
//
// A signature can be written in one way only: who has one cannot make another one of it, which would be the same message
// with other bytes. Ed25519 has S below the order of the group and R in its one encoding (crypto/ed25519 compares bytes);
// of ECDSA's two, s and n - s, the lower one is taken.
func (k *Key) Verify(text, signature []byte) bool {
	switch {
	case len(signature) != SignatureLen:
		return false
	case k.ed25519 != nil:
		return ed25519.Verify(k.ed25519, text, signature)
	case k.p256 != nil:
		sum := sha256.Sum256(text)
		return verifyP256(k.p256, sum[:], signature)
	}
	return false
}

var (
	errEncoding = errors.New("not a public key that can be read: a SubjectPublicKeyInfo in DER, of P-256 with an uncompressed point")
	errPoint    = errors.New("the public key is not a point of its curve")
	errOrder    = errors.New("the public key is one of the few Ed25519 keys that accept signatures which anyone can make")
)

func otherType(what string) error {
	return fmt.Errorf("the public key is %s; a device signs with Ed25519 or with ECDSA on P-256", what)
}
