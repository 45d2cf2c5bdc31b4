// Package envelope implements the signed message that a device publishes, version 1: parsing it strictly,
// the bytes its signature covers, signing and verifying. docs/envelope.md is its specification.
package envelope

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of the specification. The size of a whole message is the caller's to limit, before Decode.
const (
	// MaxDeviceID is the greatest length of a device id, in bytes.
	MaxDeviceID = 64
	// MaxDepth is how deep objects and arrays may nest, the envelope's own object included.
	MaxDepth = 64
	// MessageIDLen is the length of a message id: a UUID in its text form of RFC 9562, section 4.
	MessageIDLen = 36
	// MACLen is the length of a signature before its hexadecimal encoding, in bytes.
	MACLen = 32
)

// The errors of Decode. They are fixed values, so that refusing a message costs no allocation, and none quotes the
// message, so that each may be logged.
var (
	ErrSyntax    = errors.New("not one JSON object in valid UTF-8 with unique member names")
	ErrDepth     = errors.New("objects and arrays nest deeper than " + strconv.Itoa(MaxDepth))
	ErrMember    = errors.New("a member other than device_id, timestamp, message_id, payload and signature")
	ErrMissing   = errors.New("device_id, timestamp, message_id, payload or signature is missing")
	ErrDeviceID  = errors.New("device_id is not a string of 1 to 64 of A-Z a-z 0-9 . _ : -")
	ErrTimestamp = errors.New("timestamp is not an integer of at most 64 bits")
	ErrMessageID = errors.New("message_id is not a string holding a UUID of 36 characters")
	ErrSignature = errors.New("signature is not a string of 64 hexadecimal digits")
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
	// MAC is the signature, decoded.
	MAC [MACLen]byte

	timestampText []byte // as sent, as it was signed
	signature     []byte // the 64 digits
	canonical     []byte // canonical form of Payload; nil until it is first needed
	decoder       *Decoder
}

// A Decoder parses envelopes, one at a time, reusing its memory. Call NewDecoder; the zero value is not usable. Not
// safe for concurrent use.
type Decoder struct {
	input     bytes.Buffer
	json      *jsontext.Decoder
	envelope  Envelope
	canonical []byte
}

// NewDecoder returns a Decoder ready for use.
func NewDecoder() *Decoder {
	d := new(Decoder)
	d.json = jsontext.NewDecoder(&d.input)
	return d
}

// Decode parses one message: a single JSON object, white space around it allowed, with exactly the five members of an
// envelope, each once, in any order. Names, device id, message id and signature must be written without escapes.
//
// The envelope is valid until the next Decode and as long as message is not changed. An error is one of the Err values
// of this package.
func (d *Decoder) Decode(message []byte) (*Envelope, error) {
	if deeperThan(message, MaxDepth) {
		return nil, ErrDepth
	}
	d.input.Reset()
	d.input.Write(message)
	d.json.Reset(&d.input)
	if tok, err := d.json.ReadToken(); err != nil || tok.Kind() != '{' {
		return nil, ErrSyntax
	}
	e := &d.envelope
	*e = Envelope{decoder: d}
	for d.json.PeekKind() != '}' {
		name, err := d.next(message)
		if err != nil {
			return nil, ErrSyntax
		}
		value, err := d.next(message)
		if err != nil {
			return nil, ErrSyntax
		}
		if err := e.setMember(name, value); err != nil {
			return nil, err
		}
	}
	if _, err := d.json.ReadToken(); err != nil {
		return nil, ErrSyntax
	}
	if _, err := d.json.ReadToken(); err != io.EOF {
		return nil, ErrSyntax
	}
	if e.DeviceID == nil || e.timestampText == nil || e.MessageIDText == nil || e.Payload == nil || e.signature == nil {
		return nil, ErrMissing
	}
	return e, nil
}

// next reads one JSON value and returns the part of message that it is: jsontext's own slice would not outlive the
// following read.
func (d *Decoder) next(message []byte) ([]byte, error) {
	value, err := d.json.ReadValue()
	if err != nil {
		return nil, err
	}
	end := int(d.json.InputOffset())
	return message[end-len(value) : end], nil
}

// setMember stores one member of the envelope; name and value are JSON as sent. That no name comes twice is jsontext's
// doing: it refuses duplicates at every level.
func (e *Envelope) setMember(name, value []byte) error {
	switch string(name) {
	case `"device_id"`:
		id := unquote(value)
		if !validDeviceID(id) {
			return ErrDeviceID
		}
		e.DeviceID = id
	case `"timestamp"`:
		// A JSON number that ParseInt accepts is an integer: JSON has no "+5", "0x5" or "1_000", and ParseInt has no
		// fraction and no exponent.
		seconds, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || value[0] == '"' {
			return ErrTimestamp
		}
		e.Timestamp, e.timestampText = seconds, value
	case `"message_id"`:
		text := unquote(value)
		if !parseUUID(&e.MessageID, text) {
			return ErrMessageID
		}
		e.MessageIDText = text
	case `"payload"`:
		e.Payload = value
	case `"signature"`:
		digits := unquote(value)
		if len(digits) != 2*MACLen {
			return ErrSignature
		}
		if _, err := hex.Decode(e.MAC[:], digits); err != nil {
			return ErrSignature
		}
		e.signature = digits
	default:
		return ErrMember
	}
	return nil
}

// unquote returns what stands between the quotes of a JSON string, escapes and all, or nil if value is no string.
func unquote(value []byte) []byte {
	if value[0] != '"' {
		return nil
	}
	return value[1 : len(value)-1]
}

// validDeviceID reports whether id is 1 to MaxDeviceID of A-Z a-z 0-9 . _ : -; an escape has a backslash and is not.
func validDeviceID(id []byte) bool {
	if len(id) == 0 || len(id) > MaxDeviceID {
		return false
	}
	for _, c := range id {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == ':', c == '-':
		default:
			return false
		}
	}
	return true
}

// parseUUID reads xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, in either letter case, and no other form.
func parseUUID(id *[16]byte, text []byte) bool {
	if len(text) != MessageIDLen || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return false
	}
	for _, group := range [...]struct{ text, id, n int }{{0, 0, 4}, {9, 4, 2}, {14, 6, 2}, {19, 8, 2}, {24, 10, 6}} {
		if _, err := hex.Decode(id[group.id:group.id+group.n], text[group.text:group.text+2*group.n]); err != nil {
			return false
		}
	}
	return true
}

// deeperThan reports whether brackets outside strings open more than limit levels. It is meant for text not yet
// known to be JSON, and says nothing on whether it is.
func deeperThan(text []byte, limit int) bool {
	if bytes.Count(text, []byte{'{'})+bytes.Count(text, []byte{'['}) <= limit {
		return false
	}
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString:
			switch c {
			case '\\':
				i++
			case '"':
				inString = false
			}
		case c == '"':
			inString = true
		case c == '{', c == '[':
			if depth++; depth > limit {
				return true
			}
		case c == '}', c == ']':
			depth--
		}
	}
	return false
}
