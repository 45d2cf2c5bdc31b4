package registry

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// A Key encrypts secrets where they are stored (AES-256-GCM, NIST SP 800-38D). What is stored instead of a secret is
// text:
//
//	$bouncer1$ key id $ base64(nonce || ciphertext || tag)
//
// The key id is the first four bytes of the key's SHA-256 in hexadecimal, so that a wrong key is distinguished from a damaged
// database. The nonce is random, 96 bits: with a billion encryptions under one key, the odds that any two are equal are
// below one in 10^11. The associated data is the device's id behind a fixed text, so that a secret opens for its own
// device alone. Safe for concurrent use.
type Key struct {
	aead cipher.AEAD
	id   [keyIDLen]byte
}

const (
	// KeyDigits is the length of a key as text, in hexadecimal digits.
	KeyDigits = 64

	envelopeMark   = "$bouncer1$"
	keyIDLen       = 8
	associatedMark = "mosquitto-bouncer device secret 1\x00"
)

// The errors of a secret that cannot be decrypted.
var (
	errSealed   = errors.New("the secret is encrypted, and no key is set ([registry] key_file in bouncer.toml)")
	errOtherKey = errors.New("the secret is encrypted under another key than the one in [registry] key_file")
	errAltered  = errors.New("the encrypted secret is damaged, or was another device's")
)

// encoding has one text for each value: a changed bit is always noticed.
var encoding = base64.RawStdEncoding.Strict()

// NewKey returns the key that is written as 64 hexadecimal digits.
func NewKey(digits []byte) (*Key, error) {
	raw := make([]byte, hex.DecodedLen(len(digits)))
	if _, err := hex.Decode(raw, digits); err != nil || len(digits) != KeyDigits {
		return nil, fmt.Errorf("the key is not %d hexadecimal digits; make one with \"bouncerctl registry key FILE\"", KeyDigits)
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	k := &Key{aead: aead}
	sum := sha256.Sum256(raw)
	hex.Encode(k.id[:], sum[:keyIDLen/2])
	return k, nil
}

// GenerateKey returns a new random key as 64 hexadecimal digits.
func GenerateKey() []byte {
	raw := make([]byte, KeyDigits/2)
	_, _ = rand.Read(raw) // never fails
	return hex.AppendEncode(nil, raw)
}

// ID names the key without telling anything of use about it.
func (k *Key) ID() string { return string(k.id[:]) }

func associated[T ~string | ~[]byte](id T) []byte { return append([]byte(associatedMark), id...) }

// seal returns the text to store for a device's secret. A nil key stores it as it is.
func (k *Key) seal(id string, secret []byte) string {
	if k == nil {
		return string(secret)
	}
	nonce := make([]byte, k.aead.NonceSize(), k.aead.NonceSize()+len(secret)+k.aead.Overhead())
	_, _ = rand.Read(nonce) // never fails
	sealed := k.aead.Seal(nonce, nonce, secret, associated(id))
	return envelopeMark + k.ID() + "$" + encoding.EncodeToString(sealed)
}

// isSealed tells whether a stored text is an envelope, of whatever key.
func isSealed(stored []byte) bool { return bytes.HasPrefix(stored, []byte(envelopeMark)) }

// open returns the secret of what is stored for a device: stored itself where it is plain text. A nil key opens plain
// text alone.
func (k *Key) open(id, stored []byte) ([]byte, error) {
	if !isSealed(stored) {
		return stored, nil
	}
	if k == nil {
		return nil, errSealed
	}
	rest := stored[len(envelopeMark):]
	if len(rest) < keyIDLen+1 || rest[keyIDLen] != '$' {
		return nil, errAltered
	}
	if !bytes.Equal(rest[:keyIDLen], k.id[:]) {
		return nil, errOtherKey
	}
	text := rest[keyIDLen+1:]
	raw := make([]byte, encoding.DecodedLen(len(text)))
	if _, err := encoding.Decode(raw, text); err != nil || len(raw) < k.aead.NonceSize() {
		return nil, errAltered
	}
	nonce, sealed := raw[:k.aead.NonceSize()], raw[k.aead.NonceSize():]
	secret, err := k.aead.Open(sealed[:0], nonce, sealed, associated(id))
	if err != nil {
		return nil, errAltered
	}
	return secret, nil
}

// isKeyMissing tells whether a secret could not be opened for want of its key, which says nothing of the secret itself.
func isKeyMissing(err error) bool { return errors.Is(err, errSealed) || errors.Is(err, errOtherKey) }

// An Option of Open and OpenStore.
type Option func(*options)

type options struct {
	key          *Key
	compareEvery time.Duration // 0: compareEvery
}

// WithKey has secrets opened, and stored, under this key. Plain-text secrets are still read. nil: no key.
func WithKey(k *Key) Option { return func(o *options) { o.key = k } }

func apply(all []Option) (o options) {
	for _, option := range all {
		option(&o)
	}
	return o
}
