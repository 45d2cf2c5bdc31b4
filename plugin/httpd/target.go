package httpd

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"mosquitto-bouncer/plugin/ascii"
)

// A target is what a request asks for (RFC 9112, section 3.2): origin-form or absolute-form.
type target struct {
	// segments are the parts of the path between the slashes, each percent-decoded once. A "%2F" is part of its segment
	// and never separates two; "." and ".." are names like others, and an empty segment stays one.
	segments []string
	query    string // as sent, without "?"
}

var (
	errTargetForm = errors.New("the request target must be a path that begins with /, or an http or https URL without user name")
	errTargetText = errors.New("the request target must be printable ASCII without #; percent-encode other bytes")
)

// parseTarget reads the request target as the client sent it. No other normalisation takes place: two targets that are
// different names to a proxy are not made the same here, but for escapes, which RFC 3986, section 6.2.2.2, makes equal.
func parseTarget(raw []byte) (t target, err error) {
	if !ascii.Visible(raw) || bytes.IndexByte(raw, '#') >= 0 {
		return t, errTargetText
	}
	text := string(raw)
	if scheme, rest, absolute := strings.Cut(text, "://"); absolute && !strings.HasPrefix(text, "/") {
		if !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
			return t, errTargetForm
		}
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		if end == 0 || strings.Contains(rest[:end], "@") {
			return t, errTargetForm
		}
		if text = rest[end:]; !strings.HasPrefix(text, "/") {
			text = "/" + text
		}
	}
	path, query, _ := strings.Cut(text, "?")
	if !strings.HasPrefix(path, "/") {
		return t, errTargetForm
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		decoded, err := percentDecode(segment)
		if err != nil {
			return t, err
		}
		t.segments = append(t.segments, decoded)
	}
	t.query = query
	return t, nil
}

// percentDecode undoes the escapes of RFC 3986, section 2.1, once.
func percentDecode(s string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	decoded := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			decoded = append(decoded, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", fmt.Errorf("%q is not a percent-encoding; write %%25 for a percent sign", s[i:])
		}
		high, low := hexDigit(s[i+1]), hexDigit(s[i+2])
		if high < 0 || low < 0 {
			return "", fmt.Errorf("%q is not a percent-encoding; write %%25 for a percent sign", s[i:i+3])
		}
		decoded = append(decoded, byte(high<<4|low))
		i += 2
	}
	return string(decoded), nil
}

// hexDigit returns the value of a hexadecimal digit of either letter case; -1: it is none.
func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// maxShown cuts what a client sent where an answer repeats it, in bytes.
const maxShown = 64

// parseQuery reads the parameters of a query, of which each may be there once. The error names one that is not in known,
// or that is there twice.
func parseQuery(query string, known []string) (map[string]string, error) {
	if query == "" {
		return nil, nil
	}
	values := make(map[string]string)
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := percentDecode(strings.ReplaceAll(rawName, "+", " "))
		if err != nil {
			return nil, &Error{Status: 400, Reason: "bad_request", Detail: err.Error()}
		}
		value, err := percentDecode(strings.ReplaceAll(rawValue, "+", " "))
		if err != nil {
			return nil, &Error{Status: 400, Reason: "bad_request", Detail: err.Error()}
		}
		shown := fmt.Sprintf("%q", name[:min(len(name), maxShown)])
		if !slices.Contains(known, name) {
			return nil, &Error{Status: 400, Reason: "unknown_parameter", Detail: fmt.Sprintf("unknown query parameter %s; %s", shown, expected(known))}
		}
		if _, twice := values[name]; twice {
			return nil, &Error{Status: 400, Reason: "repeated_parameter", Detail: fmt.Sprintf("the query parameter %s is given more than once; give it once", shown)}
		}
		values[name] = value
	}
	return values, nil
}

// expected says which parameters there are.
func expected(known []string) string {
	if len(known) == 0 {
		return "this path takes none"
	}
	return "this path takes " + strings.Join(known, ", ")
}
