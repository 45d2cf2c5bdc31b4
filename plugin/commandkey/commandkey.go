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
// Of the keys of one algorithm the one with the latest time that has come signs. Where none has come the first one signs: either
// it replaces no other, or the clock was set back. A key that is to replace it is in the file before it signs, so that devices
// can be given its public half in time. The other way, a file for each key, would have needed a place for the times, and several
// files to change at once.
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

// maxKeys bounds the keys of one algorithm: a device need not take more (device/README.md).
const maxKeys = 8

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
	PrivateKey string `toml:"private_key"`
	Made       any    `toml:"made"` // a time.Time; any, because TOML's local times would become that too
	From       any    `toml:"from"` // likewise
}

var errNotKeys = errors.New("not a file of command keys; make one with bouncerctl command-key make")

// Parse reads a file's text. No error quotes it.
func Parse(text []byte) (*Set, error) {
	var f file
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&f); err != nil {
		return nil, errNotKeys // the error would quote the line
	}
	if most := maxKeys * len(Algorithms()); len(f.Key) == 0 || len(f.Key) > most {
		return nil, fmt.Errorf("%d command keys; there are 1 to %d", len(f.Key), most)
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
	return s, s.check()
}

// check returns an error where there are too many keys of an algorithm.
func (s *Set) check() error {
	for _, a := range Algorithms() {
		n := 0
		for _, k := range s.keys {
			if k.Public().Algorithm() == a {
				n++
			}
		}
		if n > maxKeys {
			return fmt.Errorf("%d command keys of %s; there are at most %d", n, a, maxKeys)
		}
	}
	return nil
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
	made, ok := instant(k.Made)
	from, ok2 := instant(k.From)
	if !ok || !ok2 {
		return Key{}, errors.New("made and from are not both a time with an offset, as in 2026-01-02T15:04:05Z")
	}
	return newKey(private, made, from)
}

// instant returns a time of the file, if it is one that can be written again.
func instant(v any) (time.Time, bool) {
	t, ok := v.(time.Time)
	year := t.UTC().Year()
	return t, ok && year >= 1 && year <= 9999
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
		if k.Public().Algorithm() == a && (signs == nil || k.precedes(signs, now)) {
			signs = &s.keys[i]
		}
	}
	return signs
}

// precedes reports whether k signs at a time rather than a key before it in the file.
func (k *Key) precedes(other *Key, now time.Time) bool {
	switch came, otherCame := !k.From.After(now), !other.From.After(now); {
	case came != otherCame:
		return came
	case came:
		return !k.From.Before(other.From)
	}
	return !k.From.After(other.From)
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

// With returns the set with a new key of each of the algorithms that signs from a time on; where that is now, the new one is the
// only one of its algorithm. Keys that do not sign at now any more, and will not, are not in it; nor are, of these algorithms,
// those that were to sign at from or later. s may be nil. The error is that of too many keys, or of an algorithm that does
// not exist.
func (s *Set) With(now, from time.Time, algorithms ...publickey.Algorithm) (*Set, error) {
	now, from = now.Truncate(time.Second), from.Truncate(time.Second)
	next := new(Set)
	for _, k := range s.current(now) {
		if a := k.Public().Algorithm(); slices.Contains(algorithms, a) {
			switch {
			case !from.After(now):
				continue
			case k.From.After(now) && k.Public().Equal(s.Signing(a, now).Public()):
				k.From = now.UTC() // the clock was set back; with its own time it would sign again after the new one
			case !k.From.Before(from):
				continue
			}
		}
		next.keys = append(next.keys, k)
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
	if next.check() != nil {
		return nil, fmt.Errorf("there are %d command keys of an algorithm already that sign or are yet to; wait until they do", maxKeys)
	}
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
