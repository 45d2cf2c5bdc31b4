// Package textfile reads text as editors and shells write it: with a byte order mark, as Windows' do, or in UTF-16, as
// PowerShell's ">" does. Neither is shown by any of them, and a secret with a mark before it is another secret.
//
//	EF BB BF      UTF-8: the mark is left out
//	FF FE, FE FF  UTF-16: the text becomes UTF-8, without the mark
//	otherwise     the bytes as they are
//
// What cannot be read so, UTF-32 and UTF-16 without a mark, is an error and not half a text.
package textfile

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
)

// The errors of text that cannot be read. They follow on the file's name and "is", as in "FILE: is UTF-32; ...".
var (
	ErrUTF32  = errors.New("is UTF-32; save it as UTF-8")
	ErrNoMark = errors.New("is UTF-16 without a byte order mark; save it as UTF-8")
	ErrBroken = errors.New("begins as UTF-16 and is not all of it; save it as UTF-8")
)

// Is tells whether an error is that a text's encoding cannot be read.
func Is(err error) bool {
	return errors.Is(err, ErrUTF32) || errors.Is(err, ErrNoMark) || errors.Is(err, ErrBroken)
}

// markLen is how many bytes tell the encoding.
const markLen = 4

var (
	mark8    = []byte("\xef\xbb\xbf")
	mark16LE = []byte("\xff\xfe")
	mark16BE = []byte("\xfe\xff")
	mark32LE = []byte("\xff\xfe\x00\x00")
	mark32BE = []byte("\x00\x00\xfe\xff")
)

// Decode returns the text of a file as UTF-8 without a byte order mark. Bytes that are no text are returned as they are,
// for the caller to refuse. The error is one of this package.
func Decode(content []byte) ([]byte, error) {
	utf16, err := encoding(content)
	switch {
	case err != nil:
		return nil, err
	case !utf16:
		return bytes.TrimPrefix(content, mark8), nil
	case len(content)%2 != 0:
		return nil, ErrBroken
	}
	text, err := unicode.UTF16(unicode.LittleEndian, unicode.ExpectBOM).NewDecoder().Bytes(content)
	if err != nil || bytes.ContainsRune(text, '\ufffd') {
		return nil, ErrBroken
	}
	return text, nil
}

// NewReader is Decode for what is read a little at a time. In broken UTF-16 the character U+FFFD stands for what is
// wrong.
func NewReader(r io.Reader) io.Reader { return &reader{source: bufio.NewReader(r)} }

type reader struct {
	source *bufio.Reader
	text   io.Reader // nil: not begun
}

func (r *reader) Read(p []byte) (int, error) {
	if r.text == nil {
		begin, err := r.source.Peek(markLen)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		utf16, err := encoding(begin)
		if err != nil {
			return 0, err
		}
		r.text = r.source
		if utf16 {
			r.text = transform.NewReader(r.source, unicode.UTF16(unicode.LittleEndian, unicode.ExpectBOM).NewDecoder())
		} else if bytes.HasPrefix(begin, mark8) {
			_, _ = r.source.Discard(len(mark8))
		}
	}
	return r.text.Read(p)
}

// ReadFile is os.ReadFile and Decode.
func ReadFile(path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text, err := Decode(content)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return text, nil
}

// encoding tells from the first bytes whether a text is UTF-16; of what is neither that nor UTF-8, why not.
func encoding(begin []byte) (utf16 bool, err error) {
	switch {
	case bytes.HasPrefix(begin, mark32LE), bytes.HasPrefix(begin, mark32BE):
		return false, ErrUTF32
	case bytes.HasPrefix(begin, mark16LE), bytes.HasPrefix(begin, mark16BE):
		return true, nil
	case len(begin) >= markLen && (begin[0] != 0 && begin[1] == 0 && begin[2] != 0 && begin[3] == 0 ||
		begin[0] == 0 && begin[1] != 0 && begin[2] == 0 && begin[3] != 0):
		return false, ErrNoMark
	}
	return false, nil
}
