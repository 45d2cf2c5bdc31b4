package webhook

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	// maxAnswer is the longest body of an answer that is handed on, in bytes.
	maxAnswer = 64 << 10
	// maxAnswerHead bounds the header of an answer, interim answers and trailers included, in bytes. It is curl's bound.
	maxAnswerHead = 300 << 10
	// maxAnswerLine is how much of one header line is kept, in bytes. Of a longer one only the beginning is known.
	maxAnswerLine = 4 << 10
	// maxInterim is how many 1xx answers may come before the final one.
	maxInterim = 100
	// maxBlankBytes is how many bytes of line ends may come before a status line.
	maxBlankBytes = 4
)

// errTooLong is the error of an answer whose body is longer than maxAnswer. All but the body is known then.
var errTooLong = errors.New("body is too long")

// unreadableError is the error of an answer that this client cannot understand. It says why, in a sentence for the log
// that quotes nothing of the answer.
type unreadableError struct {
	why   string
	cause error // nil: the bytes themselves are wrong
}

func (e *unreadableError) Error() string { return e.why }
func (e *unreadableError) Unwrap() error { return e.cause }

func unreadable(format string, args ...any) error {
	return &unreadableError{why: "backend's answer cannot be read: " + fmt.Sprintf(format, args...)}
}

// answer is one HTTP/1 response as it is read from a connection. It takes what curl takes: lines that end in only LF,
// folded lines, a missing reason phrase, long headers. The zero value is ready; read may be called again and again.
//
// Leniency is safe because of reusable: whatever is not exactly by RFC 9112 ends the connection with this answer, so
// that a doubt where an answer ends never reaches another request.
type answer struct {
	status     int    // 0: no status line was read
	body       []byte // valid until the next read; belongs to the answer
	reusable   bool   // the connection may carry another request, if nothing unread is left on it
	mediaType  []byte // Content-Type, empty if there is none that may be passed on
	coding     []byte // Content-Encoding and transfer codings but for identity and chunked, empty if there are none
	retryAfter []byte // Retry-After

	http10    bool
	close     bool // Connection: close
	keepAlive bool // Connection: keep-alive
	chunked   bool
	transfer  bool  // there is a transfer coding other than identity, and the last one is not chunked
	length    int64 // Content-Length; -1: none
	declared  bool  // there is a Transfer-Encoding

	budget int    // bytes of the header that may still come
	line   []byte // as read last, without its end
}

// read reads the answer to one request, with all interim answers before it. r must have been empty before the request
// was sent. The error is r's own if nothing has come, errTooLong, an *unreadableError, or wraps r's error. With an
// error, status is what has been read until then, and the connection cannot be used again.
func (a *answer) read(r *bufio.Reader) error {
	*a = answer{body: a.body[:0], mediaType: a.mediaType[:0], coding: a.coding[:0], retryAfter: a.retryAfter[:0], line: a.line[:0]}
	a.budget, a.reusable = maxAnswerHead, true
	if cap(a.body) > maxAnswerLine {
		a.body = nil
	}
	err := a.readFinal(r)
	if err != nil {
		a.reusable = false
	}
	return err
}

func (a *answer) readFinal(r *bufio.Reader) error {
	for range maxInterim + 1 {
		a.begin()
		if err := a.readStatus(r); err != nil {
			return err
		}
		if err := a.readHeader(r); err != nil {
			return err
		}
		switch {
		case a.status == 101:
			return unreadable("it switches to another protocol (status 101), which was not asked for")
		case a.status >= 200:
			return a.readBody(r)
		}
	}
	return unreadable("more than %d interim answers (status 1xx)", maxInterim)
}

// begin forgets an interim answer.
func (a *answer) begin() {
	a.status, a.length = 0, -1
	a.mediaType, a.coding, a.retryAfter = a.mediaType[:0], a.coding[:0], a.retryAfter[:0]
	a.http10, a.close, a.keepAlive, a.chunked, a.transfer, a.declared = false, false, false, false, false, false
}

// odd notes that the answer is not quite by the rules.
func (a *answer) odd() { a.reusable = false }

const protocol = "HTTP/"

// readStatus reads the status line:
//
//	HTTP/1.1 200 OK
func (a *answer) readStatus(r *bufio.Reader) error {
	if err := a.skipBlank(r); err != nil {
		return err
	}
	// Byte by byte: what is no HTTP may be shorter, and its sender wait for us.
	for n := 1; n <= len(protocol); n++ {
		b, err := r.Peek(n)
		if err != nil {
			return a.cut(err, n == 1)
		}
		if b[n-1]|0x20 != protocol[n-1]|0x20 {
			return notHTTP(r)
		}
	}
	if err := a.readLine(r); err != nil {
		return err
	}
	version, rest := string(a.line[len(protocol):]), ""
	if i := strings.IndexByte(version, ' '); i >= 0 {
		version, rest = version[:i], strings.TrimLeft(version[i:], " ")
	}
	switch version {
	case "1.1":
	case "1.0":
		a.http10 = true
	case "2", "2.0": // said by some that speak HTTP/1.1
		a.odd()
	default:
		return unreadable("its version is neither HTTP/1.0 nor HTTP/1.1")
	}
	if len(rest) < 3 || strings.Trim(rest[:3], "0123456789") != "" || len(rest) > 3 && rest[3] >= '0' && rest[3] <= '9' || rest[0] == '0' {
		return unreadable("its status is not a number of three digits")
	}
	a.status, _ = strconv.Atoi(rest[:3])
	if !bytes.HasPrefix(a.line, []byte(protocol)) || len(rest) > 3 && rest[3] != ' ' {
		a.odd()
	}
	return nil
}

// skipBlank passes over line ends that some servers leave behind a body.
func (a *answer) skipBlank(r *bufio.Reader) error {
	for n := 0; ; n++ {
		b, err := r.Peek(1)
		if err != nil {
			return a.cut(err, n == 0)
		}
		if b[0] != '\r' && b[0] != '\n' {
			return nil
		}
		if n == maxBlankBytes {
			return unreadable("it begins with empty lines")
		}
		a.odd()
		_, _ = r.Discard(1)
	}
}

// notHTTP says what an answer is that does not begin like one.
func notHTTP(r *bufio.Reader) error {
	b, _ := r.Peek(1)
	switch {
	case b[0] == 0x15 || b[0] == 0x16: // a record of TLS: an alert, or of the handshake
		if b, _ = r.Peek(2); len(b) == 2 && b[1] == 3 {
			return errSpeaksTLS
		}
	case b[0] == 0:
		if b, _ = r.Peek(4); len(b) < 4 || b[3] != 4 { // the type of a SETTINGS frame
			break
		}
		return unreadable("that port speaks HTTP/2 only; let it speak HTTP/1.1 too")
	}
	return unreadable("it is not HTTP; check host and port in backend.url")
}

// cut returns the error for an answer that ends too early. clean says that nothing of it has come.
func (a *answer) cut(err error, clean bool) error {
	if clean && a.budget == maxAnswerHead {
		return err
	}
	switch {
	case errors.Is(err, io.EOF):
		return &unreadableError{"backend's answer is cut short: the connection was closed within its header", io.ErrUnexpectedEOF}
	case isTimeout(err):
		return &unreadableError{"backend's answer does not end: its header is not complete within backend.timeout", err}
	}
	return fmt.Errorf("reading the backend's answer: %w", err)
}

// readLine reads a line of the header, or of chunks, into a.line: without its end, CRLF or LF, and no more than
// maxAnswerLine bytes of it.
func (a *answer) readLine(r *bufio.Reader) error {
	a.line = a.line[:0]
	for {
		part, err := r.ReadSlice('\n')
		if a.budget -= len(part); a.budget < 0 {
			return unreadable("its header is longer than %d KiB", maxAnswerHead>>10)
		}
		a.line = append(a.line, part[:min(len(part), maxAnswerLine+2-len(a.line))]...)
		switch {
		case err == bufio.ErrBufferFull:
			continue
		case err != nil:
			return a.cut(err, false)
		}
		break
	}
	n := len(a.line)
	switch {
	case n >= 2 && a.line[n-2] == '\r' && a.line[n-1] == '\n':
		a.line = a.line[:n-2]
	case n >= 1 && a.line[n-1] == '\n':
		a.line = a.line[:n-1]
		a.odd()
	default: // it was longer, and lacks its end
		a.line = a.line[:min(n, maxAnswerLine)]
		a.odd()
	}
	if bytes.IndexByte(a.line, 0) >= 0 {
		return unreadable("its header has a NUL byte")
	}
	return nil
}

// readHeader reads the header's lines and the empty one behind them.
func (a *answer) readHeader(r *bufio.Reader) error {
	for first := true; ; first = false {
		if err := a.readLine(r); err != nil {
			return err
		}
		if len(a.line) == 0 {
			break
		}
		if err := a.unfold(r); err != nil {
			return err
		}
		if first && (a.line[0] == ' ' || a.line[0] == '\t') { // continues nothing
			a.odd()
			continue
		}
		if err := a.field(); err != nil {
			return err
		}
	}
	if a.close || a.http10 && !a.keepAlive {
		a.odd()
	}
	return nil
}

// unfold adds the lines that continue the present one (RFC 9112, section 5.2).
func (a *answer) unfold(r *bufio.Reader) error {
	for {
		b, err := r.Peek(1)
		if err != nil {
			return a.cut(err, false)
		}
		if b[0] != ' ' && b[0] != '\t' {
			return nil
		}
		a.odd()
		whole := append([]byte(nil), a.line...)
		if err := a.readLine(r); err != nil {
			return err
		}
		whole = append(append(bytes.TrimRight(whole, " \t"), ' '), bytes.TrimLeft(a.line, " \t")...)
		a.line = whole[:min(len(whole), maxAnswerLine)]
	}
}

// field takes from a header line what matters here.
func (a *answer) field() error {
	name, value, found := bytes.Cut(a.line, []byte{':'})
	if !found {
		if len(a.line) >= maxAnswerLine {
			return unreadable("the name of a header field is longer than %d bytes", maxAnswerLine)
		}
		return unreadable("a header line has no colon")
	}
	if n := len(name); n == 0 || name[n-1] == ' ' || name[n-1] == '\t' {
		a.odd()
		name = bytes.TrimRight(name, " \t")
	}
	value = bytes.Trim(value, " \t\r")
	long := len(a.line) >= maxAnswerLine
	switch {
	case is(name, "Content-Length"):
		return a.contentLength(value)
	case is(name, "Transfer-Encoding"):
		if long {
			return unreadable("Transfer-Encoding is longer than %d bytes", maxAnswerLine)
		}
		return a.transferEncoding(value)
	case is(name, "Connection"):
		a.close = a.close || hasToken(value, "close") || long
		a.keepAlive = a.keepAlive || hasToken(value, "keep-alive")
	case is(name, "Content-Type"):
		a.mediaType = a.mediaType[:0]
		if !long && printable(value) {
			a.mediaType = append(a.mediaType, value...)
		}
	case is(name, "Content-Encoding"):
		a.addCodings(value, "none")
	case is(name, "Retry-After") && !long:
		a.retryAfter = append(a.retryAfter[:0], value...)
	}
	return nil
}

// contentLength takes a Content-Length: one number, which may be repeated (RFC 9112, section 6.3).
func (a *answer) contentLength(value []byte) error {
	for part := range bytes.SplitSeq(value, []byte{','}) {
		digits := bytes.TrimPrefix(bytes.Trim(part, " \t"), []byte{'+'})
		if len(digits) == 0 || len(bytes.Trim(digits, "0123456789")) > 0 {
			return unreadable("Content-Length is not a number")
		}
		length := int64(1) << 62 // longer than anything that is read
		if digits = bytes.TrimLeft(digits, "0"); len(digits) < 18 {
			length = 0
			for _, d := range digits {
				length = length*10 + int64(d-'0')
			}
		}
		if a.length >= 0 {
			a.odd()
			if length != a.length {
				return unreadable("there is more than one Content-Length, and they differ")
			}
		}
		a.length = length
	}
	if value[0] == '+' {
		a.odd()
	}
	return nil
}

// transferEncoding takes a Transfer-Encoding. Of codings only chunked can be undone; identity, which is not part of
// HTTP any more, means nothing.
func (a *answer) transferEncoding(value []byte) error {
	for part := range bytes.SplitSeq(value, []byte{','}) {
		coding := bytes.Trim(part, " \t")
		switch {
		case len(coding) == 0:
		case is(coding, "identity"):
			a.odd()
		case is(coding, "chunked"):
			if a.chunked {
				a.odd() // twice: some proxies add it again
			}
			a.declared, a.chunked, a.transfer = true, true, false
		default:
			a.odd()
			if a.chunked {
				return unreadable("Transfer-Encoding does not end in chunked")
			}
			a.declared, a.transfer = true, true
			a.addCodings(coding, "")
		}
	}
	return nil
}

// addCodings adds to a.coding what changes the body. identity does not, nor does also.
func (a *answer) addCodings(value []byte, also string) {
	for part := range bytes.SplitSeq(value, []byte{','}) {
		coding := bytes.Trim(part, " \t")
		if len(coding) == 0 || is(coding, "identity") || is(coding, also) {
			continue
		}
		if len(a.coding) > 0 {
			a.coding = append(a.coding, ", "...)
		}
		a.coding = append(a.coding, coding...)
	}
}

// is reports whether a header's name or token is this one, in any letter case.
func is(b []byte, name string) bool {
	return len(b) == len(name) && strings.EqualFold(string(b), name)
}

// hasToken reports whether a comma-separated list has the token.
func hasToken(list []byte, token string) bool {
	for part := range bytes.SplitSeq(list, []byte{','}) {
		if is(bytes.Trim(part, " \t"), token) {
			return true
		}
	}
	return false
}

// printable reports whether a field's value has no control characters.
func printable(value []byte) bool {
	for _, b := range value {
		if b < ' ' && b != '\t' || b == 0x7f {
			return false
		}
	}
	return true
}
