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

	"github.com/go-json-experiment/json/jsontext"
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
	if bytes.ContainsAny(e.Payload, " \n") {
		// A payload with white space was most likely signed in canonical form. The order is a matter of speed alone.
		return e.signedOver(key, e.Canonical()) || e.signedOver(key, e.Payload)
	}
	if e.signedOver(key, e.Payload) {
		return true
	}
	canonical := e.Canonical()
	return !bytes.Equal(canonical, e.Payload) && e.signedOver(key, canonical)
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

// Canonical returns the payload in canonical form: without white space, the members of every object sorted by name as
// RFC 8785, section 3.2.3, sorts them, every string and number as sent. Valid until the Decoder's next Decode.
func (e *Envelope) Canonical() []byte {
	if e.canonical == nil {
		// The payload has been parsed: formatting it cannot fail.
		e.decoder.canonical, _ = AppendCanonical(e.decoder.canonical[:0], e.Payload)
		e.canonical = e.decoder.canonical
	}
	return e.canonical
}

// AppendCanonical appends the canonical form of a JSON value to dst: see Canonical. An error says that payload is not
// exactly one JSON value in valid UTF-8 with unique member names.
func AppendCanonical(dst, payload []byte) ([]byte, error) {
	n := len(dst)
	dst, err := jsontext.AppendFormat(dst, payload, jsontext.ReorderRawObjects(true), jsontext.PreserveRawStrings(true))
	if err != nil {
		return dst[:n], fmt.Errorf("canonical form: %w", err)
	}
	return dst, nil
}

// Sign returns the complete envelope of a message, ready to be published, signed over payload's bytes as given.
// timestamp is in seconds since 1970-01-01 UTC, messageID a UUID of 36 characters, payload one JSON value. An error
// says which of them is not what an envelope may hold.
func Sign(secret []byte, deviceID string, timestamp int64, messageID string, payload []byte) ([]byte, error) {
	if len(secret) == 0 {
		return nil, errors.New("sign: the secret is empty")
	}
	if !validDeviceID([]byte(deviceID)) {
		return nil, fmt.Errorf("sign: %w", ErrDeviceID)
	}
	if !parseUUID(new([16]byte), []byte(messageID)) {
		return nil, fmt.Errorf("sign: %w", ErrMessageID)
	}
	payload = bytes.Trim(payload, " \t\r\n")
	if !jsontext.Value(payload).IsValid() || deeperThan(payload, MaxDepth-1) {
		return nil, fmt.Errorf("sign: the payload is not one JSON value that an envelope may hold")
	}
	seconds := strconv.FormatInt(timestamp, 10)
	mac := hmac.New(sha256.New, secret)
	for _, part := range []string{deviceID, seconds, messageID, string(payload)} {
		mac.Write([]byte(part))
	}
	return fmt.Appendf(nil, `{"device_id":"%s","timestamp":%s,"message_id":"%s","payload":%s,"signature":"%s"}`,
		deviceID, seconds, messageID, payload, hex.EncodeToString(mac.Sum(nil))), nil
}
