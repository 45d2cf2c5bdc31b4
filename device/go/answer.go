package device

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// A Status is what became of a command.
type Status string

// The statuses.
const (
	Succeeded Status = "succeeded" // done
	Failed    Status = "failed"    // tried without success
	Rejected  Status = "rejected"  // not tried
)

// Answer returns the payload that answers a command, to be signed and published on the command topic with /result behind
// it. result is one JSON value, or empty for none. A result that no message has room for is an *Error with the reason
// too_large; Sign refuses what is too large for the device's limit.
func Answer(commandID string, status Status, result []byte) ([]byte, error) {
	if _, ok := parseUUID(commandID); !ok {
		return nil, errCommandID
	}
	if status != Succeeded && status != Failed && status != Rejected {
		return nil, errStatus
	}
	if len(result) == 0 {
		return fmt.Appendf(nil, `{"command_id":"%s","status":"%s"}`, commandID, status), nil
	}
	result = bytes.Trim(result, " \t\r\n")
	if len(result) > maxMessageBytes {
		return nil, errTooLarge
	}
	payload := fmt.Appendf(nil, `{"command_id":"%s","status":"%s","result":%s}`, commandID, status, result)
	if _, err := checkPayload(result, maxMessageBytes); err != nil {
		return nil, err
	}
	return checkPayload(payload, maxMessageBytes) // the object around the result takes a level of nesting
}

// A Notice is what the gateway says on the rejected topic of a message that it has refused.
type Notice struct {
	MessageID  string // "": the message had none that could be read
	Reason     string
	ServerTime int64 // seconds since 1970-01-01 UTC
}

// maxNoticeBytes bounds what ReadNotice reads.
const maxNoticeBytes = 65536

var errNotice = errors.New("device: not a notice")

// ReadNotice reads a message on the rejected topic. The error means that it is none, and is to be ignored.
func ReadNotice(message []byte) (Notice, error) {
	if len(message) > maxNoticeBytes {
		return Notice{}, errNotice
	}
	d := jsontext.NewDecoder(bytes.NewReader(message))
	if begin, err := d.ReadToken(); err != nil || begin.Kind() != '{' {
		return Notice{}, errNotice
	}
	var n Notice
	var id, reason, seconds bool
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return Notice{}, errNotice
		}
		member := name.String()
		value, err := d.ReadValue()
		if err != nil {
			return Notice{}, errNotice
		}
		switch member {
		case "message_id":
			if value.Kind() == 'n' {
				id = true
			} else if n.MessageID, id = text(value); id {
				_, id = parseUUID(n.MessageID)
			}
		case "reason":
			n.Reason, reason = text(value)
		case "server_time":
			n.ServerTime, seconds = parseSeconds(value)
		}
	}
	if _, err := d.ReadToken(); err != nil || d.PeekKind() != jsontext.KindInvalid || !id || !reason || !seconds {
		return Notice{}, errNotice
	}
	if rest := message[d.InputOffset():]; len(bytes.Trim(rest, " \t\r\n")) > 0 {
		return Notice{}, errNotice
	}
	return n, nil
}

// text returns the value of a JSON string.
func text(value jsontext.Value) (string, bool) {
	if value.Kind() != '"' {
		return "", false
	}
	b, err := jsontext.AppendUnquote(nil, value)
	return string(b), err == nil
}
