package textfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ErrNotRegular is the error of a directory, a FIFO or a device in the place of a file.
var ErrNotRegular = errors.New("not a regular file")

// A TooLargeError is the error of a file that is larger than so many bytes.
type TooLargeError int

func (e TooLargeError) Error() string { return fmt.Sprintf("larger than %d bytes", int(e)) }

// ReadRegular returns the bytes of a regular file of at most so many bytes, as they are. flags are further ones for opening;
// accept, which may be nil, can refuse the file before it is read.
func ReadRegular(path string, most, flags int, accept func(fs.FileInfo) error) ([]byte, error) {
	// Without O_NONBLOCK, opening a FIFO would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|flags, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, ErrNotRegular
	}
	if accept != nil {
		if err := accept(info); err != nil {
			return nil, err
		}
	}
	content, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(content) > most {
		return nil, TooLargeError(most)
	}
	return content, nil
}
