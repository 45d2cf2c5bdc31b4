// Package commandkey keeps the private keys that the gateway signs commands with, for devices that have a public key: such a
// device holds no secret that it shares with the gateway, so that it could verify an HMAC.
//
// The keys are in a file of their own and not in the registry: who copies the database can then no more command the devices
// than speak for them. The file is TOML:
//
//	[[key]]
//	private_key = "MC4CAQAwBQYDK2VwBCIEI..."   # PKCS #8 in base64: Ed25519, or ECDSA on P-256
//	made = 2026-01-02T15:04:05Z
//	from = 2026-01-02T15:04:05Z                # signs from then on
//
// Of the keys of one algorithm the one with the latest time that has come signs. A key that is to replace it is in the file
// before it signs, so that devices can be given its public half in time. The other way, a file for each key, would have
// needed a place for the times, and several files to change at once.
package commandkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/pelletier/go-toml/v2"

	"mosquitto-bouncer/plugin/publickey"
)

// maxKeys bounds the keys of one file.
const maxKeys = 16

// Algorithms are those that commands can be signed with, which are those of devices' keys.
func Algorithms() []publickey.Algorithm {
	return []publickey.Algorithm{publickey.Ed25519, publickey.P256}
}

// A Key is a private key, and when it signs.
type Key struct {
	Made, From time.Time // in whole seconds

	private crypto.Signer
	signer  *publickey.Signer
}

// Public returns the public half.
func (k *Key) Public() *publickey.Key { return k.signer.Public() }

// Signer returns what signs with the private half.
func (k *Key) Signer() *publickey.Signer { return k.signer }

// A Set is the keys of a file. It is immutable and safe for concurrent use. However it is printed, its keys are not. nil is a set
// without keys.
type Set struct{ keys []Key }

// String returns how many keys there are.
func (s *Set) String() string { return fmt.Sprintf("[%d command keys]", len(s.Keys())) }

// Format prints what String returns, for every verb.
func (s *Set) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue returns what String returns.
func (s *Set) LogValue() slog.Value { return slog.StringValue(s.String()) }

// file is the file's form.
type file struct {
	Key []fileKey `toml:"key"`
}

type fileKey struct {
	PrivateKey string    `toml:"private_key"`
	Made       time.Time `toml:"made"`
	From       time.Time `toml:"from"`
}

var errNotKeys = errors.New("not a file of command keys; make one with bouncerctl command-key make")

// Parse reads a file's text. No error quotes it.
func Parse(text []byte) (*Set, error) {
	var f file
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&f); err != nil {
		return nil, errNotKeys // the error would quote the line
	}
	if len(f.Key) == 0 || len(f.Key) > maxKeys {
		return nil, fmt.Errorf("%d command keys; there are 1 to %d", len(f.Key), maxKeys)
	}
	s := new(Set)
	for i, k := range f.Key {
		key, err := read(k)
		if err != nil {
			return nil, fmt.Errorf("command key %d: %w", i+1, err)
		}
		if slices.ContainsFunc(s.keys, func(other Key) bool { return other.Public().Equal(key.Public()) }) {
			return nil, fmt.Errorf("command key %d is there twice; remove one", i+1)
		}
		s.keys = append(s.keys, key)
	}
	return s, nil
}

func read(k fileKey) (Key, error) {
	der, err := base64.StdEncoding.DecodeString(k.PrivateKey)
	if err != nil {
		return Key{}, errors.New("private_key is not base64")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	private, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return Key{}, errors.New("private_key is not a private key in PKCS #8 that can sign")
	}
	if k.Made.IsZero() || k.From.IsZero() {
		return Key{}, errors.New("made or from is missing")
	}
	return newKey(private, k.Made, k.From)
}

func newKey(private crypto.Signer, made, from time.Time) (Key, error) {
	signer, err := publickey.NewSigner(private)
	if err != nil {
		return Key{}, err
	}
	return Key{made.UTC().Truncate(time.Second), from.UTC().Truncate(time.Second), private, signer}, nil
}

// Encode returns the text of the file.
func (s *Set) Encode() ([]byte, error) {
	var f file
	for _, k := range s.keys {
		der, err := x509.MarshalPKCS8PrivateKey(k.private)
		if err != nil {
			return nil, err
		}
		f.Key = append(f.Key, fileKey{base64.StdEncoding.EncodeToString(der), k.Made, k.From})
	}
	text := bytes.NewBufferString("# The private keys that commands to devices with public keys are signed with. Who has this file can command these\n" +
		"# devices. \"bouncerctl command-key\" writes it.\n\n")
	err := toml.NewEncoder(text).Encode(f)
	return text.Bytes(), err
}

// Keys returns the keys, in the order of the file. They are not to be changed.
func (s *Set) Keys() []Key {
	if s == nil {
		return nil
	}
	return s.keys
}

// Equal reports whether two sets have the same keys with the same times.
func (s *Set) Equal(other *Set) bool {
	return slices.EqualFunc(s.Keys(), other.Keys(), func(a, b Key) bool {
		return a.Public().Equal(b.Public()) && a.Made.Equal(b.Made) && a.From.Equal(b.From)
	})
}

// Signing returns the key of an algorithm that signs at a time; nil: there is none.
func (s *Set) Signing(a publickey.Algorithm, now time.Time) *Key {
	var signs *Key
	for i, k := range s.Keys() {
		if k.Public().Algorithm() == a && !k.From.After(now) && (signs == nil || !k.From.Before(signs.From)) {
			signs = &s.keys[i]
		}
	}
	return signs
}

// Valid returns the public keys of an algorithm that a device must know from a time on: that of the key that signs then, and of
// those that will.
func (s *Set) Valid(a publickey.Algorithm, now time.Time) (keys []*publickey.Key) {
	for _, k := range s.current(now) {
		if k.Public().Algorithm() == a {
			keys = append(keys, k.Public())
		}
	}
	return keys
}

// current returns the keys that sign at a time or later.
func (s *Set) current(now time.Time) (keys []Key) {
	for _, k := range s.Keys() {
		signs := s.Signing(k.Public().Algorithm(), now)
		if signs != nil && k.Public().Equal(signs.Public()) || k.From.After(now) {
			keys = append(keys, k)
		}
	}
	return keys
}

// With returns the set with a new key of each of the algorithms that signs from a time on. Keys that do not sign at now any more,
// and will not, are not in it; nor are, of these algorithms, those that were to sign at from or later. s may be nil. The
// error is that of too many keys, or of an algorithm that does not exist.
func (s *Set) With(now, from time.Time, algorithms ...publickey.Algorithm) (*Set, error) {
	next := new(Set)
	for _, k := range s.current(now) {
		if replaced := !k.From.Before(from.Truncate(time.Second)) && slices.Contains(algorithms, k.Public().Algorithm()); !replaced {
			next.keys = append(next.keys, k)
		}
	}
	for _, a := range algorithms {
		private, err := generate(a)
		if err != nil {
			return nil, err
		}
		key, err := newKey(private, now, from)
		if err != nil {
			return nil, err
		}
		next.keys = append(next.keys, key)
	}
	if len(next.keys) > maxKeys {
		return nil, fmt.Errorf("there are %d command keys that are yet to sign; wait until they do", maxKeys)
	}
	next.keys = next.current(now)
	return next, nil
}

func generate(a publickey.Algorithm) (crypto.Signer, error) {
	switch a {
	case publickey.Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case publickey.P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("no algorithm %q", a)
}
