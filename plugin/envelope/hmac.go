package envelope

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"hash"
)

// An HMAC is the Verifier of one shared secret: HMAC-SHA256 (RFC 2104, FIPS 180-4) with the secret's bytes as the key. It
// keeps the state after the key has been hashed, so that a verification costs no set-up and no allocation. Not safe for
// concurrent use.
type HMAC struct {
	mac hash.Hash
	sum [sha256.Size]byte
}

// NewHMAC returns the HMAC of a secret. The secret is not kept.
func NewHMAC(secret []byte) *HMAC { return &HMAC{mac: hmac.New(sha256.New, secret)} }

// Verify implements Verifier.
func (h *HMAC) Verify(e *Envelope) bool {
	if h.signed(e, e.likelier()) {
		return true
	}
	other := e.other()
	return other != nil && h.signed(e, other)
}

// signed reports whether the signature is over the envelope with payload in the place of P.
func (h *HMAC) signed(e *Envelope, payload []byte) bool {
	h.mac.Reset()
	h.mac.Write(e.DeviceID)
	h.mac.Write(e.timestampText)
	h.mac.Write(e.MessageIDText)
	h.mac.Write(payload)
	return hmac.Equal(h.mac.Sum(h.sum[:0]), e.Signature)
}

// IsOver reports whether the envelope's signature is over any text: to find out what a firmware has signed by mistake. It
// verifies nothing.
func (h *HMAC) IsOver(e *Envelope, text []byte) bool {
	h.mac.Reset()
	h.mac.Write(text)
	return hmac.Equal(h.mac.Sum(h.sum[:0]), e.Signature)
}

// hmacSigner is the Signer of a secret.
type hmacSigner []byte

func (secret hmacSigner) Signature(text []byte) ([]byte, error) {
	// HMAC fills a key up with NUL bytes, so a single one is the empty key.
	if len(bytes.Trim(secret, "\x00")) == 0 {
		return nil, errors.New("the secret is empty, or consists of NUL bytes only")
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(text)
	return mac.Sum(nil), nil
}
