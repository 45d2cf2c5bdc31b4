// Package cloudevent has what the sinks share of CloudEvents: the attributes that are the same for every message, how values
// are written into headers, and the key that names a message among those of all devices.
package cloudevent

import (
	"strings"

	"mosquitto-bouncer/plugin/ascii"
)

// The attributes that are the same for every message. The specification advises a reverse DNS name as the prefix of a type;
// this project has no domain to reverse, so its own name stands in.
const (
	Spec = "1.0"
	Type = "mosquitto-bouncer.message.v1"
	// MaxSubject bounds the attribute subject, in bytes as sent; beyond it the optional attribute is left out rather than risk
	// the server's limit on headers.
	MaxSubject = 1024
)

// SourcePrefix stands before the device id in the attribute source.
const SourcePrefix = "/devices/"

// AppendKey appends what names a message among those of all devices: a device's id, escaped, and the message's, in lower
// case. An id being a UUID, no two devices can share a key.
func AppendKey(dst []byte, device, message string) []byte {
	dst = append(AppendEscaped(dst, device), ':')
	return AppendEscaped(dst, strings.ToLower(message))
}

// AppendEscaped appends the value of a header field. What could end it, or the quotes around it, is percent-encoded as
// the HTTP binding of CloudEvents says (section 3.1.3.2): space, quote, percent and everything not printable ASCII;
// the backslash too, for the sake of quoted strings.
func AppendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if b := s[i]; b <= ' ' || b >= 0x7f || b == '"' || b == '%' || b == '\\' {
			dst = append(dst, '%', hex[b>>4], hex[b&15])
		} else {
			dst = append(dst, b)
		}
	}
	return dst
}

// maxTraceparent bounds a traceparent of a later version, which may be longer than version 00.
const maxTraceparent = 256

// ValidTraceparent reports whether s is a traceparent as W3C Trace Context defines it (section 3.2):
//
//	00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//
// version, trace-id, parent-id and trace-flags in lower-case hexadecimal digits, neither id all zeros. Version ff is
// invalid; one that is not known yet may be followed by a hyphen and more.
func ValidTraceparent(s string) bool {
	const length = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	if len(s) < length || len(s) > maxTraceparent {
		return false
	}
	version, traceID, parentID, flags, more := s[:2], s[3:35], s[36:52], s[53:55], s[length:]
	for _, digits := range [...]string{version, traceID, parentID, flags} {
		if strings.Trim(digits, "0123456789abcdef") != "" {
			return false
		}
	}
	switch {
	case s[2] != '-' || s[35] != '-' || s[52] != '-':
		return false
	case strings.Trim(traceID, "0") == "" || strings.Trim(parentID, "0") == "":
		return false
	case version == "00":
		return more == ""
	}
	return version != "ff" && (more == "" || more[0] == '-' && ascii.Visible(more))
}
