package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lookInterval is the time between two looks at whether the journal's files are still what its paths name.
const lookInterval = 400 * time.Millisecond

// errLost is for a journal whose files are away. What was appended then would be acknowledged and gone.
var errLost = errors.New("the files of the journal are not where they were")

// home is the journal's directory as Open found it. An open file outlives its name: without a look at the name, a process that
// writes to it does not notice that the directory was removed, or that another one is in its place. Safe for concurrent
// use.
type home struct {
	dir  string
	lock *os.File
	info os.FileInfo // of the directory
}

func homeOf(dir string, lock *os.File) (home, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return home{}, fmt.Errorf("journal: %w", err)
	}
	return home{dir, lock, info}, nil
}

// check says what is wrong with the directory, if anything is.
func (h *home) check() error {
	info, err := os.Stat(h.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s was removed or renamed; put it back as it was, or restart the broker, which starts a new journal: "+
			"without the old one, what waits in it is lost", errLost, h.dir)
	case err != nil:
		return fmt.Errorf("%w: %w; put the directory back as it was, or restart the broker", errLost, err)
	case !os.SameFile(info, h.info):
		return fmt.Errorf("%w: %s is another directory now, or its file system was unmounted; put the former back, or restart the "+
			"broker, which continues with what is there", errLost, h.dir)
	}
	return h.checkFile(h.lock, lockName)
}

// checkFile says whether a name in the directory is still that of an open file.
func (h *home) checkFile(f *os.File, name string) error {
	is, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	named, err := os.Lstat(filepath.Join(h.dir, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s was removed; restart the broker, which starts a new file: what waits in the removed one can be "+
			"delivered until then, and is lost after", errLost, filepath.Join(h.dir, name))
	case err != nil:
		return fmt.Errorf("%w: %w", errLost, err)
	case !os.SameFile(is, named):
		return fmt.Errorf("%w: %s was replaced by another file; restart the broker, which continues with what is there", errLost,
			filepath.Join(h.dir, name))
	}
	return nil
}

// checkWritable says whether the file system takes writes. A full one does, for what is asked here.
func (h *home) checkWritable() error {
	_, err := h.lock.WriteAt(strconv.AppendInt(nil, int64(os.Getpid()), 10), 0)
	if err == nil || isFull(err) {
		var s unix.Statfs_t
		if unix.Statfs(h.dir, &s) == nil && s.Flags&unix.ST_RDONLY != 0 {
			err = syscall.EROFS
		} else {
			err = nil
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s cannot be written: %w; mount its file system for writing, or repair the disk: the journal then "+
		"resumes automatically", errLost, h.dir, err)
}

// look notes whether the journal's files are where they were. It is cheap where nothing but the directory is asked for.
func (j *Journal) look(files bool) {
	err := j.home.check()
	if err == nil && files {
		err = j.lookAtFiles()
	}
	was := j.lost.Load()
	switch {
	case err == nil && was != nil && files:
		j.lost.Store(nil)
		if r := j.refused.Load(); r != nil && errors.Is(*r, errLost) {
			j.refused.CompareAndSwap(r, nil)
		}
		j.log.Info("the files of the journal are where they were; it stores messages again")
	case err != nil && was == nil:
		err := fmt.Errorf("journal: %w", err)
		j.log.Error("the journal cannot keep messages; they are refused as overloaded", "error", err)
		j.lost.Store(&err)
	case err != nil && err.Error() != (*was).Error():
		err := fmt.Errorf("journal: %w", err)
		j.lost.Store(&err)
	}
}

// lookAtFiles looks at the logs of all segments.
func (j *Journal) lookAtFiles() error {
	if err := j.home.checkWritable(); err != nil {
		return err
	}
	j.mu.Lock()
	segments := make([]*segment, 0, len(j.segments))
	for _, s := range j.segments {
		segments = append(segments, s)
	}
	current := j.current
	j.mu.Unlock()
	for _, s := range segments {
		if s == current {
			if err := j.home.checkFile(s.log, logName(s.number)); err != nil {
				return err
			}
			continue
		}
		if s.closed && s.end <= logStart {
			continue
		}
		if path := filepath.Join(j.options.Dir, logName(s.number)); !j.exists(logName(s.number)) {
			return fmt.Errorf("%w: %s was removed; put it back, or restart the broker, which continues without it: what waits in it "+
				"is lost", errLost, path)
		}
	}
	return nil
}
