package envelope

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/publickey"
)

// The bytes under the signature, joined without separators:
//
//	device_id || timestamp || message_id || P
//
// device_id and message_id are the characters between the quotes, timestamp is the number's characters, all as sent.
// P is the payload in canonical form, or the payload's bytes exactly as sent: a signature over either is accepted.
//
// A join without separators is unambiguous here, and only here: device_id is known beforehand (it must equal the TLS
// identity), timestamp is an integer, and message_id is a UUID of exactly 36 characters, whose first hyphen stands at
// its ninth: so every reading of the joined bytes cuts them at the same places. Relax none of the three.

// A Verifier checks signatures by one of a device's credentials. Not safe for concurrent use.
type Verifier interface {
	// Verify reports whether the envelope's signature was made with the credential, over the payload in canonical form or as
	// sent. The time it takes does not depend on where a signature differs.
	Verify(e *Envelope) bool
}

// A Signer makes signatures with one credential. Safe for concurrent use.
type Signer interface {
	// Signature returns the signature over text. The error says why the credential makes none.
	Signature(text []byte) ([]byte, error)
}

// NewVerifier returns the verifier of a device's secret as the registry has it: HMAC-SHA256. The secret is not kept. That of
// a public key is NewKeyVerifier's.
func NewVerifier(secret []byte) Verifier { return NewHMAC(secret) }

// NewSigner returns the signer of a secret. That of a private key is publickey.Signer.
func NewSigner(secret []byte) Signer { return hmacSigner(secret) }

// isSignatureLen reports whether the signatures of any algorithm have n bytes. None has more than MaxSignature.
func isSignatureLen(n int) bool { return n == sha256.Size || n == publickey.SignatureLen }

// likelier returns the form of the payload that the signature is the likelier to cover, and other the other one, nil where
// they are the same. The order matters only for speed.
func (e *Envelope) likelier() []byte {
	// A payload sent with white space was most likely signed without.
	if !e.unsorted && len(e.canonical) < len(e.Payload) {
		return e.canonical
	}
	return e.Payload
}

func (e *Envelope) other() []byte {
	switch {
	case e.unsorted:
		return e.Canonical()
	case len(e.canonical) < len(e.Payload):
		return e.Payload
	case bytes.Equal(e.canonical, e.Payload):
		return nil
	}
	return e.canonical
}

// AppendCanonical appends the canonical form of a JSON value, white space around it allowed, to dst: see
// Envelope.Canonical. The error is ErrValue or ErrDepth.
func AppendCanonical(dst, value []byte) ([]byte, error) {
	var s scanner
	s.reset(value)
	if err := s.value(MaxDepth - 1); errors.Is(err, ErrSyntax) {
		return dst, ErrValue
	} else if err != nil {
		return dst, err
	}
	if s.space(); s.at != len(value) {
		return dst, ErrValue
	}
	return append(dst, s.canonical...), nil
}

// Sign returns the complete envelope of a message, ready to be published, signed over payload's bytes as given.
// timestamp is in seconds since 1970-01-01 UTC, messageID a UUID of 36 characters, payload one JSON value. An error
// says which of them is not what an envelope may hold, or is the signer's.
func Sign(signer Signer, deviceID string, timestamp int64, messageID string, payload []byte) ([]byte, error) {
	if !deviceid.Valid(deviceID) {
		return nil, fmt.Errorf("sign: %w", ErrDeviceID)
	}
	if !parseUUID(new([16]byte), []byte(messageID)) {
		return nil, fmt.Errorf("sign: %w", ErrMessageID)
	}
	if _, err := AppendCanonical(nil, payload); err != nil {
		return nil, fmt.Errorf("sign: the payload: %w", err)
	}
	payload = bytes.Trim(payload, " \t\r\n")
	seconds := strconv.FormatInt(timestamp, 10)
	signature, err := signer.Signature(fmt.Appendf(nil, "%s%s%s%s", deviceID, seconds, messageID, payload))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return fmt.Appendf(nil, `{"device_id":"%s","timestamp":%s,"message_id":"%s","payload":%s,"signature":"%s"}`,
		deviceID, seconds, messageID, payload, hex.EncodeToString(signature)), nil
}
