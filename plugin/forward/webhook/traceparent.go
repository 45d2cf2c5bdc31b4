package webhook

import (
	"strings"

	"mosquitto-bouncer/plugin/ascii"
)

// maxTraceparent bounds a traceparent of a later version, which may be longer than version 00.
const maxTraceparent = 256

// validTraceparent reports whether s is a traceparent as W3C Trace Context defines it (section 3.2):
//
//	00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//
// version, trace-id, parent-id and trace-flags in lower-case hexadecimal digits, neither id all zeros. Version ff is
// invalid; one that is not known yet may be followed by a hyphen and more.
func validTraceparent(s string) bool {
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
