package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

var errStarved = fmt.Errorf("%w: the space that is left on the disk is reserved for outcomes of earlier messages", ErrFull)

// reserveState is the goroutine's, of the room on the disk that is kept for outcomes.
type reserveState struct {
	reserve   int64 // bytes that are to be set aside; 0: not known yet
	reserved  int64 // bytes that are
	reserveAt time.Time
}

// setAside makes the file that keeps room on the disk for outcomes, so that a disk that messages have filled does not
// stay full: a segment is dropped when its outcomes are written. With it messages are accepted again.
func (j *Journal) setAside() {
	b := &j.background
	size := b.reserve
	if size == 0 {
		size = j.options.SegmentBytes + minReserve
	}
	err := makeReserve(j.options.Dir, size)
	for b.reserve == 0 && isFull(err) && size > minReserve {
		size = max(size/2, minReserve)
		err = makeReserve(j.options.Dir, size)
	}
	if isFull(err) {
		return
	}
	// Where it is not possible for another reason, it must do without.
	b.reserve, b.reserved = size, size
	j.starved.Store(false)
}

// starve leaves what room there is on the disk to outcomes, until all can be set aside again that was. Of that it frees
// all but so many bytes.
func (j *Journal) starve(but int64) {
	b := &j.background
	j.starved.Store(true)
	if b.reserved <= but {
		return
	}
	b.reserved = but
	path := filepath.Join(j.options.Dir, reserveName)
	err := os.Truncate(path, but)
	if but == 0 {
		err = removeIfThere(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.log.Error("the space that the journal reserves for outcomes could not be freed", "error", err)
	}
}

// makeReserve makes a file that takes size bytes on the disk. Where there is no room it stays as it was.
func makeReserve(dir string, size int64) (err error) {
	f, err := os.OpenFile(filepath.Join(dir, reserveName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := allocate(f, size); err != nil {
		return errors.Join(err, f.Truncate(min(info.Size(), size)))
	}
	return f.Truncate(size)
}

// allocate makes f take size bytes on the disk. Where that cannot be asked for, zeros are written.
func allocate(f *os.File, size int64) error {
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, minReserve)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return f.Sync()
}
