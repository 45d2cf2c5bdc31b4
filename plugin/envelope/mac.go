package envelope

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
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

// A Key is one shared secret ready for use: HMAC-SHA256 (RFC 2104, FIPS 180-4) with the secret's bytes as the key. It
// keeps the state after the key has been hashed, so that a verification costs no set-up and no allocation. Not safe for
// concurrent use.
type Key struct {
	mac hash.Hash
	sum [MACLen]byte
}

// NewKey returns the Key for a secret. The secret is not kept.
func NewKey(secret []byte) *Key {
	return &Key{mac: hmac.New(sha256.New, secret)}
}

// SignedBy reports whether the envelope's signature was made with key, over the payload in canonical form or as sent.
// The comparison takes the same time whatever differs.
func (e *Envelope) SignedBy(key *Key) bool {
	switch {
	case e.unsorted:
		return e.signedOver(key, e.Payload) || e.signedOver(key, e.Canonical())
	case bytes.Equal(e.Payload, e.canonical):
		return e.signedOver(key, e.Payload)
	case len(e.canonical) < len(e.Payload):
		// A payload sent with white space was most likely signed without. The order is a matter of speed alone.
		return e.signedOver(key, e.canonical) || e.signedOver(key, e.Payload)
	default:
		return e.signedOver(key, e.Payload) || e.signedOver(key, e.canonical)
	}
}

// signedOver reports whether the signature is key's over the envelope with payload in the place of P.
func (e *Envelope) signedOver(key *Key, payload []byte) bool {
	key.mac.Reset()
	key.mac.Write(e.DeviceID)
	key.mac.Write(e.timestampText)
	key.mac.Write(e.MessageIDText)
	key.mac.Write(payload)
	return hmac.Equal(key.mac.Sum(key.sum[:0]), e.MAC[:])
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
// says which of them is not what an envelope may hold.
func Sign(secret []byte, deviceID string, timestamp int64, messageID string, payload []byte) ([]byte, error) {
	// HMAC fills a key up with NUL bytes, so one of them alone is the empty key.
	if len(bytes.Trim(secret, "\x00")) == 0 {
		return nil, errors.New("sign: the secret is empty, or of NUL bytes alone")
	}
	if !validDeviceID([]byte(deviceID)) {
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
	mac := hmac.New(sha256.New, secret)
	for _, part := range []string{deviceID, seconds, messageID, string(payload)} {
		mac.Write([]byte(part))
	}
	return fmt.Appendf(nil, `{"device_id":"%s","timestamp":%s,"message_id":"%s","payload":%s,"signature":"%s"}`,
		deviceID, seconds, messageID, payload, hex.EncodeToString(mac.Sum(nil))), nil
}
