// Package envelope implements the signed message that a device publishes, version 1: parsing it strictly,
// the bytes its signature covers, signing and verifying. docs/envelope.md is its specification.
package envelope

import (
	"crypto/sha256"
	"errors"
	"strconv"

	"mosquitto-bouncer/plugin/deviceid"
)

// Limits of the specification. The size of a whole message is the caller's to limit, before Decode.
const (
	// MaxDepth is how deep objects and arrays may nest, the envelope's own object included.
	MaxDepth = 64
	// MessageIDLen is the length of a message id: a UUID in its text form of RFC 9562, section 4.
	MessageIDLen = 36
	// MaxSignature is the greatest length of a signature before its hexadecimal encoding, in bytes.
	MaxSignature = 64
)

// The errors of Decode. They are fixed values, so that refusing a message costs no allocation, and none quotes the
// message, so that each may be logged.
var (
	ErrValue     = errors.New("not one JSON value in valid UTF-8 with unique member names")
	ErrSyntax    = errors.New("not one JSON object in valid UTF-8 with unique member names")
	ErrDepth     = errors.New("objects and arrays nest deeper than " + strconv.Itoa(MaxDepth))
	ErrMember    = errors.New("a member other than device_id, timestamp, message_id, payload and signature")
	ErrMissing   = errors.New("device_id, timestamp, message_id, payload or signature is missing")
	ErrDeviceID  = errors.New("device_id is not a string of " + deviceid.Rule)
	ErrTimestamp = errors.New("timestamp is not an integer of at most 64 bits")
	ErrMessageID = errors.New("message_id is not a string holding a UUID of 36 characters")
	ErrSignature = errors.New("signature is not a string of 64 hexadecimal digits, or 128 of a device with a public key")
)

// An Envelope is one parsed message. Nothing in it has been verified yet. Its slices are parts of the message given to
// Decode.
type Envelope struct {
	// DeviceID is who the message says it is from.
	DeviceID []byte
	// Timestamp is when the device says it made the message, in seconds since 1970-01-01 UTC.
	Timestamp int64
	// MessageID is the UUID as 16 bytes: the same whatever the letter case of its text.
	MessageID [16]byte
	// MessageIDText is the UUID as sent, as it was signed.
	MessageIDText []byte
	// Payload is the payload's JSON value exactly as sent, without white space around it.
	Payload []byte
	// Signature is the signature, decoded: as long as one of some algorithm. It is part of the decoder's memory.
	Signature []byte

	timestampText []byte // as sent, as it was signed
	canonical     []byte // of Payload, in the decoder's memory; not sorted if unsorted
	unsorted      bool
	digested      bool // the decoder's digest is of this envelope
	decoder       *Decoder
}

// A Decoder parses envelopes, one at a time, reusing its memory. The zero value is ready for use. Not safe for concurrent
// use.
type Decoder struct {
	// MessageID, if not nil, is called by Decode as soon as the message's id is known, with the rest yet to be read: a
	// caller who will look it up can have its memory fetched meanwhile.
	MessageID func(id [16]byte)

	scanner  scanner
	sorter   scanner // of payloads that scanner has left unsorted
	envelope Envelope

	// Parts of the envelope that need no clearing between two of them.
	signature [MaxSignature]byte
	digest    [sha256.Size]byte
	text      []byte // see Envelope.joined
}

// Decode parses one message: a single JSON object, white space around it allowed, with exactly the five members of an
// envelope, each once, in any order. Names, device id, message id and signature must be written without escapes.
//
// The envelope is valid until the next Decode and as long as message is not changed. An error is one of the Err values
// of this package.
func (d *Decoder) Decode(message []byte) (*Envelope, error) {
	s, e := &d.scanner, &d.envelope
	s.reset(message)
	s.sortLater = true
	*e = Envelope{decoder: d}
	if !s.take('{') {
		return nil, ErrSyntax
	}
	var seen int
	for !s.take('}') {
		if seen != 0 && !s.take(',') {
			return nil, ErrSyntax
		}
		if s.space() != '"' {
			return nil, ErrSyntax
		}
		name, err := s.plainString(ErrMember)
		if err != nil {
			return nil, err
		}
		if !s.take(':') {
			return nil, ErrSyntax
		}
		bit, err := e.readMember(name, s)
		if err != nil {
			return nil, err
		}
		if seen&bit != 0 {
			return nil, ErrSyntax
		}
		seen |= bit
	}
	if s.space(); s.at != len(message) {
		return nil, ErrSyntax
	}
	if seen != allMembers {
		return nil, ErrMissing
	}
	return e, nil
}

// allMembers is the sum of readMember's bits.
const allMembers = 1<<5 - 1

// readMember reads the value of the member name from s, and returns a bit of the member's own.
func (e *Envelope) readMember(name []byte, s *scanner) (bit int, err error) {
	switch string(name) {
	case "device_id":
		e.DeviceID, err = s.plainString(ErrDeviceID)
		if err == nil && !deviceid.Valid(e.DeviceID) { // an escape has a backslash, and is not valid
			err = ErrDeviceID
		}
		return 1 << 0, err
	case "timestamp":
		s.space()
		at := s.at
		if !s.number() {
			return 0, ErrTimestamp
		}
		e.timestampText = s.text[at:s.at]
		// A JSON number that ParseInt accepts is an integer: ParseInt knows no fraction and no exponent.
		if e.Timestamp, err = strconv.ParseInt(string(e.timestampText), 10, 64); err != nil {
			err = ErrTimestamp
		}
		return 1 << 1, err
	case "message_id":
		e.MessageIDText, err = s.plainString(ErrMessageID)
		if err == nil && !parseUUID(&e.MessageID, e.MessageIDText) {
			err = ErrMessageID
		}
		if err == nil && e.decoder.MessageID != nil {
			e.decoder.MessageID(e.MessageID)
		}
		return 1 << 2, err
	case "payload":
		s.space()
		at := s.at
		if err = s.value(MaxDepth - 1); err != nil {
			return 0, err
		}
		e.Payload, e.canonical, e.unsorted = s.text[at:s.at], s.canonical, s.unsorted
		return 1 << 3, nil
	case "signature":
		digits, err := s.plainString(ErrSignature)
		if err != nil {
			return 0, err
		}
		n := len(digits) / 2
		if !isSignatureLen(n) || !decodeHex(e.decoder.signature[:n], digits) {
			return 0, ErrSignature
		}
		e.Signature = e.decoder.signature[:n]
		return 1 << 4, nil
	}
	return 0, ErrMember
}

// Canonical returns the payload in canonical form: without white space, the members of every object sorted by name as
// RFC 8785, section 3.2.3, sorts them, every string and number as sent. It is part of the Decoder's memory. To sort large
// objects is the most expensive thing that a message can ask for, so it waits until here.
func (e *Envelope) Canonical() []byte {
	if e.unsorted {
		s := &e.decoder.sorter
		s.reset(e.Payload)
		if s.value(MaxDepth-1) != nil {
			return nil // Decode has read it without an error
		}
		e.canonical, e.unsorted = s.canonical, false
	}
	return e.canonical
}

// parseUUID reads xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, in either letter case, and no other form.
func parseUUID(id *[16]byte, text []byte) bool {
	return len(text) == MessageIDLen && text[8] == '-' && text[13] == '-' && text[18] == '-' && text[23] == '-' &&
		decodeHex(id[0:4], text[0:8]) && decodeHex(id[4:6], text[9:13]) && decodeHex(id[6:8], text[14:18]) &&
		decodeHex(id[8:10], text[19:23]) && decodeHex(id[10:16], text[24:36])
}

// decodeHex fills dst from exactly twice as many hexadecimal digits, in either letter case, and reports whether they
// were. encoding/hex does the same at three times the cost.
func decodeHex(dst, digits []byte) bool {
	if len(digits) != 2*len(dst) {
		return false
	}
	var wrong byte
	for i := range dst {
		high, low := hexDigits[digits[2*i]], hexDigits[digits[2*i+1]]
		wrong |= high | low
		dst[i] = high<<4 | low
	}
	return wrong < 16
}
