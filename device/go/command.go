package device

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"mosquitto-bouncer/plugin/envelope"
)

// maxCommandBytes is the greatest length of a command's message, in bytes.
const maxCommandBytes = 66560

// A Command is one that has been verified.
type Command struct {
	ID      string          // a UUID as the gateway wrote it
	Body    json.RawMessage // one JSON value, as the gateway sent it
	Expires int64           // seconds since 1970-01-01 UTC
}

// VerifyCommand returns the command that a message on the device's command topic carries, if it is the gateway's. now is the
// device's time, the zero time for a device without a clock. The error is an *Error with the reason malformed, foreign, forged
// or expired. Whether the command is new is for a CommandMemory to say.
func VerifyCommand(c *Credential, deviceID string, message []byte, now time.Time) (Command, error) {
	if c == nil {
		return Command{}, errForged
	}
	if len(message) > maxCommandBytes {
		return Command{}, errMalformed
	}
	e, err := new(envelope.Decoder).Decode(message)
	if err != nil {
		return Command{}, errMalformed
	}
	signed := e.AppendSigned(nil, false)
	// The signed text continues with the timestamp as it was sent: "-0" is an integer, too.
	if signed[len(e.DeviceID)] == '-' || e.Timestamp > maxInteger {
		return Command{}, errMalformed
	}
	if string(e.DeviceID) != deviceID {
		return Command{}, errForeign
	}
	if !c.verifies(signed, e.Signature) {
		return Command{}, errForged
	}
	if version(e.MessageID) != commandVersion {
		return Command{}, errMalformed
	}
	body, expires, ok := readCommand(e.Payload)
	if !ok {
		return Command{}, errMalformed
	}
	if !now.IsZero() && now.Unix() >= expires {
		return Command{}, errExpired
	}
	return Command{string(e.MessageIDText), body, expires}, nil
}

// readCommand reads a command's payload, which the envelope's decoder has found to be JSON with unique names.
func readCommand(payload []byte) (body []byte, expires int64, ok bool) {
	d := jsontext.NewDecoder(bytes.NewReader(payload))
	if begin, err := d.ReadToken(); err != nil || begin.Kind() != '{' {
		return nil, 0, false
	}
	found := 0
	for d.PeekKind() == '"' {
		name, err := d.ReadValue()
		if err != nil {
			return nil, 0, false
		}
		member := string(name) // as written: an escape in it makes it another name
		value, err := d.ReadValue()
		if err != nil {
			return nil, 0, false
		}
		found++
		switch member {
		case `"command"`:
			body = bytes.Clone(value)
		case `"expires"`:
			if expires, ok = parseSeconds(value); !ok {
				return nil, 0, false
			}
		default:
			return nil, 0, false
		}
	}
	return body, expires, found == 2 && body != nil && ok
}

// parseSeconds reads digits alone, 0 to 2^53-1, without a leading zero.
func parseSeconds(text []byte) (int64, bool) {
	if len(text) == 0 || text[0] < '0' || text[0] > '9' || text[0] == '0' && len(text) > 1 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil && n <= maxInteger
}
