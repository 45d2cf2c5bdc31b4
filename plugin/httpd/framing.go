package httpd

import (
	"bytes"
	"strings"

	"github.com/valyala/fasthttp"
)

// chunked is fasthttp's length of a body with Transfer-Encoding: chunked. fasthttp keeps nothing of what stands between the
// chunks and behind them, and ends the trailer also at a line that ends with only LF. So it cannot be known whether another
// reader has found the same end, and nothing is read behind such a body: its connection is closed.
const chunked = -1

// framing refuses a request in which two readers could find different headers, or a different end: one before this server
// may take what follows for another client's request (RFC 9112, section 11.2). fasthttp itself refuses repeated
// Content-Length and Host, Transfer-Encoding in HTTP/1.0, unknown codings and chunk sizes that are no number. The
// connection of a request that is refused must be closed: where the next one begins is not known.
func framing(header *fasthttp.RequestHeader) *Error {
	switch string(header.Protocol()) {
	case "HTTP/1.0", "HTTP/1.1":
	default:
		return &Error{Status: 505, Reason: "bad_request", Detail: "the version must be HTTP/1.1 or HTTP/1.0"}
	}
	raw := header.RawHeaders()
	codings, lengths := 0, 0
	for len(raw) > 0 {
		line, rest, _ := bytes.Cut(raw, []byte("\n"))
		raw = rest
		line, terminated := bytes.CutSuffix(line, []byte("\r"))
		if !terminated {
			return badFraming("a header line does not end with CR LF")
		}
		if len(line) == 0 {
			break
		}
		if bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return badFraming("a header has a control character")
		}
		name, value, colon := bytes.Cut(line, []byte(":"))
		if !colon || !isToken(name) {
			return badFraming("a header line has no name, or is the continuation of the line before")
		}
		switch {
		case strings.EqualFold(string(name), "Transfer-Encoding"):
			codings++
			if !strings.EqualFold(string(bytes.Trim(value, " \t")), "chunked") {
				return badFraming("Transfer-Encoding must be chunked or absent")
			}
		case strings.EqualFold(string(name), "Content-Length"):
			lengths++
		}
	}
	switch {
	case codings > 1 || lengths > 1:
		return badFraming("Transfer-Encoding or Content-Length is given more than once")
	case codings > 0 && lengths > 0:
		return badFraming("the request has both Transfer-Encoding and Content-Length; send one of them")
	}
	return nil
}

func badFraming(detail string) *Error {
	return &Error{Status: 400, Reason: "bad_request", Detail: detail}
}

// isToken reports whether a header's name is one (RFC 9110, section 5.6.2).
func isToken(name []byte) bool {
	for _, c := range name {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && !('0' <= c && c <= '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return len(name) > 0
}
