// Package secret holds keys and tokens, and keeps them out of what is printed.
package secret

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// A Secret is a key, token or password, as the bytes of its text. However it is printed, logged or encoded, it is
// "[redacted]".
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

// Equal reports whether two secrets are the same, in a time that depends only on their lengths.
func (s Secret) Equal(other Secret) bool { return subtle.ConstantTimeCompare(s, other) == 1 }
