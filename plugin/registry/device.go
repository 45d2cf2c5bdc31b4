package registry

import (
	"fmt"
	"log/slog"
)

// A Device is one registered device. It is immutable: a device that changes is a new Device with the same Serial, one
// that does not keeps its address, so what is derived from a Device may be kept for as long as Lookup returns the same
// pointer.
type Device struct {
	ID       string
	Serial   uint32   // counted from 0, its own for the life of the Registry, also across removal and return
	Secrets  []Secret // the HMAC keys in force, newest first; never empty, and no secret is
	Disabled bool
}

// maxID is the longest device id, in bytes.
const maxID = 64

// ValidID tells whether id is 1 to 64 of A-Z a-z 0-9 . _ : -
func ValidID(id string) bool { return validID(id) }

func validID[T string | []byte](id T) bool {
	if len(id) < 1 || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == ':', c == '-':
		default:
			return false
		}
	}
	return true
}

// A Secret is a device's HMAC key: the bytes of the text in the database, as they are. It prints as "[redacted]"
// however it is printed.
type Secret []byte

const redacted = "[redacted]"

// String returns "[redacted]".
func (Secret) String() string { return redacted }

// GoString returns "[redacted]".
func (Secret) GoString() string { return redacted }

// Format prints "[redacted]" for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns "[redacted]".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]".
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
