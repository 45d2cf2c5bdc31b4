package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Read reads the message at pos into a, whose slices are parts of buf, or of a larger one if it is too small. It returns
// the buffer for the next call. The error is [ErrNotFound] if there is no such segment, [ErrDamaged] if the record is not
// as it was written; the message is lost then. Other errors are the disk's, and may pass.
func (j *Journal) Read(pos Position, a *Accepted, buf []byte) ([]byte, error) {
	for tries := 0; ; tries++ {
		s, at, f, err := j.reader(pos)
		if errors.Is(err, errMoved) && tries < 10 {
			continue
		}
		if err != nil {
			return buf, err
		}
		buf, err = readRecord(f, at.offset(), s.seed, a, buf)
		// Another reader may have closed the file, to open its own.
		if errors.Is(err, os.ErrClosed) && tries < 10 && !j.closed.Load() {
			continue
		}
		if err != nil {
			return buf, fmt.Errorf("journal: %s: %w", pos, err)
		}
		return buf, nil
	}
}

const firstRead = 1024 // bytes; most records are shorter

func readRecord(f io.ReaderAt, offset, seed uint32, a *Accepted, buf []byte) ([]byte, error) {
	if cap(buf) < firstRead {
		buf = make([]byte, firstRead)
	}
	buf = buf[:cap(buf)]
	n, err := f.ReadAt(buf[:firstRead], int64(offset))
	if n < recordHeader {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: %w", ErrDamaged, errHeader)
		}
		return buf, err
	}
	length, ok := parseHeader(buf, offset, seed)
	if !ok {
		return buf, fmt.Errorf("%w: %w", ErrDamaged, errHeader)
	}
	if whole := recordHeader + length; whole > n {
		if whole > len(buf) {
			larger := make([]byte, whole)
			copy(larger, buf[:n])
			buf = larger
		}
		if _, err := f.ReadAt(buf[n:whole], int64(offset)+int64(n)); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: %w", ErrDamaged, errBody)
			}
			return buf, err
		}
	}
	r := record{Accepted: Accepted{Device: a.Device}}
	if err := parseRecord(buf, seed, &r); err != nil {
		return buf, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if r.ids != nil {
		return buf, fmt.Errorf("%w: %w", ErrDamaged, errHeader)
	}
	*a = r.Accepted
	return buf, nil
}

// maxReaders is how many logs are open for reading.
const maxReaders = 16

// errMoved: the message was moved meanwhile, so it is to be looked for again.
var errMoved = errors.New("journal: moved")

// reader returns where the message of a position is: its segment, the place in it, and its log.
func (j *Journal) reader(pos Position) (*segment, Position, *os.File, error) {
	j.mu.Lock()
	at := j.resolve(pos)
	s := j.segments[at.segment()]
	if s != nil && s.reader != nil {
		j.reads++
		s.used = j.reads
		f := s.reader
		j.mu.Unlock()
		return s, at, f, nil
	}
	j.mu.Unlock()
	if j.closed.Load() {
		return nil, 0, nil, ErrClosed
	}
	if s == nil {
		return nil, 0, nil, fmt.Errorf("%w: %s", ErrNotFound, pos)
	}
	f, err := os.Open(filepath.Join(j.options.Dir, logName(s.number)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil, j.notFound(pos, at)
	}
	if err != nil {
		return nil, 0, nil, fmt.Errorf("journal: %w", err)
	}

	var superfluous *os.File
	j.mu.Lock()
	switch {
	case s.reader != nil: // another goroutine was faster
		f, superfluous = s.reader, f
	case j.closed.Load() || j.segments[s.number] != s:
		j.mu.Unlock()
		f.Close()
		return nil, 0, nil, j.notFound(pos, at)
	default:
		if len(j.open) == maxReaders {
			oldest := 0
			for i, o := range j.open {
				if o.used < j.open[oldest].used {
					oldest = i
				}
			}
			superfluous = j.open[oldest].reader
			j.open[oldest].reader = nil
			j.open[oldest] = s
		} else {
			j.open = append(j.open, s)
		}
		s.reader = f
	}
	j.reads++
	s.used = j.reads
	j.mu.Unlock()
	if superfluous != nil {
		superfluous.Close()
	}
	return s, at, f, nil
}

// notFound says why the message of a position was not found where it was a moment ago.
func (j *Journal) notFound(pos, at Position) error {
	j.mu.Lock()
	moved := j.resolve(pos) != at
	j.mu.Unlock()
	if moved {
		return errMoved
	}
	// Where the directory is away, which may pass, nothing can be said of what is in it.
	if err := j.home.check(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return fmt.Errorf("%w: %s", ErrNotFound, pos)
}
