// Package backendurl holds the rules for the URL that messages are sent to, for those who read it and those who use it.
package backendurl

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"mosquitto-bouncer/plugin/ascii"
)

const (
	// Placeholder stands for the device's id, in the path or the query.
	Placeholder = "{device_id}"
	// Example is a valid URL.
	Example = "http://localhost:5000/device/{device_id}/data"
	// maxLength bounds a URL, in bytes.
	maxLength = 2048
)

// URL is a backend's, cut at the placeholders.
type URL struct {
	scheme, host string
	path, query  []string // what lies between the placeholders; query is nil if there is none
}

// Parse reads an absolute http or https URL in printable ASCII without user name, password and fragment. The error
// completes a sentence that begins with the setting's name; it quotes neither user name nor password nor query.
func Parse(raw string) (u URL, err error) {
	// Stands in for the placeholder while net/url checks and escapes the rest.
	const stand = "bouncer-device-id-placeholder"
	shown, _, _ := strings.Cut(raw, "?")
	if len(raw) > maxLength {
		return u, fmt.Errorf("is longer than %d bytes; use a shorter URL", maxLength)
	}
	p, err := url.Parse(strings.ReplaceAll(raw, Placeholder, stand))
	if err != nil || strings.Contains(p.Host, stand) {
		return u, fmt.Errorf("is not a URL; write it in full, for example %q", Example)
	}
	port, badPort := p.Port(), false
	if port != "" || strings.HasSuffix(p.Host, ":") {
		n, err := strconv.ParseUint(port, 10, 16)
		badPort = err != nil || n == 0
	}
	switch {
	case p.User != nil || strings.Contains(p.Opaque, "@"): // first: no other error may show it
		err = fmt.Errorf("has a user name or password in it; remove them and use backend.bearer_token_file")
	case strings.Contains(p.Host, ","):
		err = fmt.Errorf("%q names more than one host; name one", shown)
	case p.Scheme != "http" && p.Scheme != "https":
		err = fmt.Errorf("%q does not begin with http:// or https://; write it in full, for example %q", shown, Example)
	case p.Opaque != "" || p.Hostname() == "":
		err = fmt.Errorf("%q has no host; write it in full, for example %q", shown, Example)
	case badPort:
		err = fmt.Errorf("%q has port %q; use 1 to 65535", shown, port)
	case strings.Contains(raw, "#"):
		err = fmt.Errorf("%q has a fragment, which is never sent; remove it from the # on", shown)
	case strings.ContainsAny(p.Path+p.RawQuery, "{}"):
		err = fmt.Errorf("%q has an unknown placeholder; the only one is %s", shown, Placeholder)
	case strings.ContainsAny(raw, " \t\r\n"):
		err = fmt.Errorf("%q has a blank in it; remove it, or write %%20", shown)
	case !ascii.Visible(raw):
		err = fmt.Errorf("%q has characters other than printable ASCII without blanks; escape them with %%", shown)
	}
	if err != nil {
		return u, err
	}
	u = URL{scheme: p.Scheme, host: p.Host, path: strings.Split(p.EscapedPath(), stand)}
	if p.RawQuery != "" {
		u.query = strings.Split(p.RawQuery, stand)
	}
	return u, nil
}

// Secure reports whether it is https.
func (u *URL) Secure() bool { return u.scheme == "https" }

// Host returns the host, with the port if there is one.
func (u *URL) Host() string { return u.host }

// PerDevice reports whether each device has a URL of its own.
func (u *URL) PerDevice() bool { return len(u.path) > 1 || len(u.query) > 1 }

// Append appends the URL for a device.
func (u *URL) Append(dst []byte, device string) []byte {
	dst = append(append(append(dst, u.scheme...), "://"...), u.host...)
	for i, part := range u.path {
		if i > 0 {
			switch device {
			case ".", "..": // else a step in the path
				dst = append(dst, strings.ReplaceAll(device, ".", "%2E")...)
			default:
				dst = append(dst, url.PathEscape(device)...)
			}
		}
		dst = append(dst, part...)
	}
	for i, part := range u.query {
		if i == 0 {
			dst = append(dst, '?')
		} else {
			dst = append(dst, url.QueryEscape(device)...)
		}
		dst = append(dst, part...)
	}
	return dst
}

// WithoutQuery returns a URL as it may be shown: a query may hold a token.
func WithoutQuery(url string) string {
	shown, _, has := strings.Cut(url, "?")
	if has {
		shown += "?..."
	}
	return shown
}
