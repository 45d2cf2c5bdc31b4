package webhook

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// readBody reads the body by the rules of RFC 9112, section 6.3.
func (a *answer) readBody(r *bufio.Reader) (err error) {
	switch {
	case a.status == 204 || a.status == 304:
		if a.declared || a.length > 0 && a.status == 204 {
			a.odd()
		}
	case a.chunked:
		if a.length >= 0 || a.http10 {
			a.odd()
		}
		err = a.readChunks(r)
	case a.transfer || a.length < 0:
		a.odd()
		err = a.readToEnd(r)
	default:
		err = a.readLength(r, a.length)
	}
	return err
}

// grow makes room for n more bytes of the body and returns them, or errTooLong.
func (a *answer) grow(n int64) ([]byte, error) {
	at := len(a.body)
	if n > int64(maxAnswer-at) {
		return nil, errTooLong
	}
	a.body = append(a.body, make([]byte, n)...)
	return a.body[at:], nil
}

func (a *answer) readLength(r *bufio.Reader, length int64) error {
	into, err := a.grow(length)
	if err != nil {
		return err
	}
	n, err := io.ReadFull(r, into)
	a.body = a.body[:len(a.body)-len(into)+n]
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &unreadableError{fmt.Sprintf("backend's answer is cut short: %d of %d bytes came before the connection was closed", n, length), io.ErrUnexpectedEOF}
	case isTimeout(err):
		return &unreadableError{fmt.Sprintf("backend's answer does not end: %d of %d bytes came within backend.timeout; check its Content-Length", n, length), err}
	}
	return broken(err)
}

// broken is the error of an answer that ends with a connection that was reset, or with TLS that was not closed.
func broken(err error) error {
	return &unreadableError{"backend's answer is cut short: the connection broke within its body", err}
}

func (a *answer) readToEnd(r *bufio.Reader) error {
	for {
		part, err := r.Peek(max(1, r.Buffered()))
		if len(part) > maxAnswer-len(a.body) {
			return errTooLong
		}
		a.body = append(a.body, part...)
		_, _ = r.Discard(len(part))
		switch {
		case err == nil:
		case err == io.EOF:
			return nil
		case isTimeout(err):
			return &unreadableError{"backend's answer does not end: it has no Content-Length, and the connection was not closed within backend.timeout", err}
		default:
			return broken(err)
		}
	}
}

// readChunks reads a chunked body (RFC 9112, section 7.1) and the trailer.
func (a *answer) readChunks(r *bufio.Reader) error {
	for {
		if err := a.readLine(r); err != nil {
			return err
		}
		size, ok := chunkSize(a.line)
		switch {
		case !ok:
			return unreadable("a chunk of its body has no valid size")
		case size == 0:
			return a.readTrailer(r)
		}
		if err := a.readLength(r, size); err != nil {
			return err
		}
		if err := a.readLine(r); err != nil {
			return err
		}
		if len(a.line) > 0 {
			return unreadable("a chunk of its body is longer than its size says")
		}
	}
}

// chunkSize reads the size of a chunk. Behind it may be blanks and extensions.
func chunkSize(line []byte) (size int64, ok bool) {
	line, _, _ = bytes.Cut(line, []byte{';'})
	digits := bytes.TrimRight(line, " \t")
	if len(digits) == 0 || len(digits) > 15 {
		return 0, false
	}
	for _, d := range digits {
		switch {
		case d >= '0' && d <= '9':
			d -= '0'
		case d|0x20 >= 'a' && d|0x20 <= 'f':
			d = d | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		size = size<<4 | int64(d)
	}
	return size, true
}

// readTrailer passes over the fields behind the last chunk.
func (a *answer) readTrailer(r *bufio.Reader) error {
	for {
		if err := a.readLine(r); err != nil {
			return err
		}
		if len(a.line) == 0 {
			return nil
		}
	}
}
