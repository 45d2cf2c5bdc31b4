// Package linefile is a text file of checked lines: appended to, read whole, and replaced whole.
//
// The first line is a header that names the format. Each further line is a text, a blank, and the CRC-32C of the text as
// eight hexadecimal digits. A line that a crash has cut off is taken away at the next opening; a damaged one is reported.
// Replacing is atomic: after a crash the old lines are there, or the new ones.
package linefile

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
)

// MaxLine is the greatest length of a line's text, in bytes.
const MaxLine = 4096

// ErrHeader says that a file begins with another header.
var ErrHeader = errors.New("not a file of this version; restore it from a backup, or move it away")

const (
	sumDigits = 8
	buffer    = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A File is one such file, open for one goroutine at a time.
type File struct {
	path, header string
	f            *os.File
	size         int64 // in bytes
	base         int64 // size after the last Replace, or at Open
}

// Open opens the file at path and makes it, with mode 0640, if there is none. header ends with a newline. take is given
// the text of every line, nil for a damaged one; it must not keep the slice.
func Open(path, header string, take func(text []byte)) (*File, error) {
	l := &File{path: path, header: header}
	err := l.open()
	if errors.Is(err, fs.ErrNotExist) {
		return l, l.Replace(func(func([]byte) bool) {})
	}
	if err != nil {
		return nil, err
	}
	whole, err := l.read(take)
	if err == nil && whole == 0 { // the crash of a first start
		return l, l.Replace(func(func([]byte) bool) {})
	}
	if err == nil {
		err = l.f.Truncate(whole)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), l.Close())
	}
	l.size, l.base = whole, whole
	return l, nil
}

func (l *File) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("%s: not a regular file", l.path), err, f.Close())
	}
	if l.f != nil {
		_ = l.f.Close()
	}
	l.f = f
	return nil
}

// Close closes the file.
func (l *File) Close() error { return l.f.Close() }

// Size returns the file's size in bytes.
func (l *File) Size() int64 { return l.size }

// Grown reports whether the file is more than twice as large as it was when it was replaced last, by beyond bytes.
func (l *File) Grown(beyond int64) bool { return l.size > 2*l.base+beyond }

// Read gives the text of every line to take, as Open does.
func (l *File) Read(take func(text []byte)) error {
	if _, err := l.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := l.read(take)
	return err
}

// read returns how many bytes are whole lines; 0 where not even the header is.
func (l *File) read(take func(text []byte)) (whole int64, err error) {
	r := bufio.NewReaderSize(l.f, buffer)
	first, err := r.ReadSlice('\n')
	if errors.Is(err, io.EOF) && bytes.HasPrefix([]byte(l.header), first) {
		return 0, nil
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return 0, err
	}
	if string(first) != l.header {
		return 0, ErrHeader
	}
	whole = int64(len(first))
	for tooLong := false; ; {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return whole, nil // what is left has no end
		case errors.Is(err, bufio.ErrBufferFull):
			whole += int64(len(line))
			tooLong = true
			continue
		case err != nil:
			return 0, err
		}
		whole += int64(len(line))
		text := checked(line[:len(line)-1])
		if tooLong {
			text, tooLong = nil, false
		}
		take(text)
	}
}

// checked returns the text of a line without its end; nil: it is damaged.
func checked(line []byte) []byte {
	at := len(line) - sumDigits - 1
	if at < 1 || line[at] != ' ' || at > MaxLine {
		return nil
	}
	sum, err := strconv.ParseUint(string(line[at+1:]), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(line[:at], castagnoli) {
		return nil
	}
	return line[:at]
}

// AppendLine appends to lines the line of a text, which has no newline and 1 to MaxLine bytes.
func AppendLine(lines, text []byte) []byte {
	sum := crc32.Checksum(text, castagnoli)
	lines = append(append(lines, text...), ' ')
	lines = hex.AppendEncode(lines, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	return append(lines, '\n')
}

// Append appends lines made by AppendLine. They are on the disk when it returns.
func (l *File) Append(lines []byte) error {
	n, err := l.f.Write(lines)
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		if n > 0 {
			err = errors.Join(err, l.f.Truncate(l.size))
		}
		return err
	}
	l.size += int64(len(lines))
	return nil
}

// Replace has the file hold only the lines of these texts.
func (l *File) Replace(texts iter.Seq[[]byte]) (err error) {
	f, err := os.OpenFile(l.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			_ = f.Close()
			_ = os.Remove(l.path + ".new")
		}
	}()
	w := bufio.NewWriterSize(f, buffer)
	size, _ := w.WriteString(l.header)
	var line []byte
	for text := range texts {
		line = AppendLine(line[:0], text)
		size += len(line)
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	if err := errors.Join(w.Flush(), f.Sync(), f.Close(), os.Rename(l.path+".new", l.path)); err != nil {
		return err
	}
	done = true
	dir, err := os.Open(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	if err := errors.Join(dir.Sync(), dir.Close(), l.open()); err != nil {
		return err
	}
	l.size, l.base = int64(size), int64(size)
	return nil
}
