package device

import "errors"

// A Reason says in one word why something is refused. The words are those of ../README.md, and do not change.
type Reason string

// The reasons of Sign and of Device.Publish.
const (
	BadDeviceID  Reason = "device_id"  // not 1 to 64 of A-Z a-z 0-9 . _ : -
	BadTimestamp Reason = "timestamp"  // not 0 to 9007199254740991
	BadMessageID Reason = "message_id" // not a UUID of 36 characters, or of version 8, which is for commands
	BadPayload   Reason = "payload"    // not one JSON value that the gateway accepts
	TooLarge     Reason = "too_large"  // the message would be longer than the limit
	OutboxFull   Reason = "full"       // of Device.Publish: the outbox has no room
)

// The reasons of VerifyCommand and of Device.OnCommandRefused.
const (
	Malformed Reason = "malformed" // not a signed command
	Foreign   Reason = "foreign"   // for another device
	Forged    Reason = "forged"    // the signature is not the gateway's
	Expired   Reason = "expired"   // its time is over
	Repeated  Reason = "repeated"  // taken before: not executed again
)

// An Error is a refusal of this package. errors.As finds it.
type Error struct {
	Reason Reason
	text   string
}

func (e *Error) Error() string { return "device: " + e.text }

// ReasonOf returns the reason of an error of this package, "" if it has none.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// The errors that are no refusal of a message.
var (
	// ErrClosed: the Device was closed. Messages without an outcome stay in the outbox.
	ErrClosed = errors.New("device: closed")
	// ErrInUse: another Device has the state directory.
	ErrInUse = errors.New("device: the state directory is in use by another Device")
)

var (
	errDeviceID  = &Error{BadDeviceID, "the device id is not 1 to 64 of A-Z a-z 0-9 . _ : -"}
	errTimestamp = &Error{BadTimestamp, "the timestamp is not within 0 to 9007199254740991"}
	errMessageID = &Error{BadMessageID, "the message id is not a UUID of 36 characters, or of version 8, which is for commands"}
	errPayload   = &Error{BadPayload, "the payload is not one JSON value in UTF-8 with unique member names"}
	errDepth     = &Error{BadPayload, "the payload nests deeper than 63"}
	errTooLarge  = &Error{TooLarge, "the message would be longer than the limit"}
	errFull      = &Error{OutboxFull, "the outbox is full"}

	errMalformed = &Error{Malformed, "not a signed command"}
	errForeign   = &Error{Foreign, "a command for another device"}
	errForged    = &Error{Forged, "a command without a good signature of the gateway"}
	errExpired   = &Error{Expired, "an expired command"}
	errRepeated  = &Error{Repeated, "a command that was taken before"}

	errCommandID = errors.New("device: the command id is not a UUID of 36 characters")
	errStatus    = errors.New("device: the status is not succeeded, failed or rejected")
)
