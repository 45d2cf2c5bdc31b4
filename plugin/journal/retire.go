package journal

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
)

// retireState is the goroutine's, of dropped segments.
type retireState struct {
	dropped      dropped
	leftover     []*segment // dropped, but for their files
	dropUnsynced bool       // that they were is not on the disk yet
}

// saveDropped notes durably that s is no more, with what happened to its messages.
func (j *Journal) saveDropped(s *segment, delivered, dead uint64) error {
	b := &j.background
	d := dropped{Delivered: b.dropped.Delivered + delivered, Dead: b.dropped.Dead + dead, Ranges: slices.Clone(b.dropped.Ranges)}
	for _, n := range b.dropped.Segments {
		if j.exists(logName(n.Number)) {
			d.Segments = append(d.Segments, n)
		}
	}
	d.Segments = append(d.Segments, droppedName{s.number, s.salt})
	d.add(s.number)
	d.forgetOldest()
	j.stateMu.Lock()
	err := d.save(j.options.Dir, j.options.fsync)
	j.stateMu.Unlock()
	if errors.Is(err, errReplaced) {
		// A process that is killed now finds s dropped; after a power failure s may be there, and the copies are cut
		// off then. So both must stay until the directory is on the disk.
		b.dropUnsynced = true
		err = nil
	} else if err == nil {
		b.dropUnsynced = false
	}
	if err == nil {
		b.dropped = d
	}
	return err
}

// exists reports whether a file may be there.
func (j *Journal) exists(name string) bool {
	_, err := os.Lstat(filepath.Join(j.options.Dir, name))
	return !errors.Is(err, os.ErrNotExist)
}

// forget has a dropped segment be no more; its files are left over.
func (j *Journal) forget(s *segment) {
	j.mu.Lock()
	delete(j.segments, s.number)
	reader := s.reader
	s.reader = nil
	j.open = slices.DeleteFunc(j.open, func(o *segment) bool { return o == s })
	j.mu.Unlock()
	if reader != nil {
		reader.Close()
	}
	j.background.dirtyOutcome = slices.DeleteFunc(j.background.dirtyOutcome, func(o *segment) bool { return o == s })
	j.background.leftover = append(j.background.leftover, s)
	j.counts.dropped.Add(1)
	j.log.Debug("a segment of the journal dropped", "file", logName(s.number))
}

// removeLeftover removes the files of dropped segments.
func (j *Journal) removeLeftover() error {
	b := &j.background
	if b.dropUnsynced {
		if err := syncDirectory(j.options.Dir, j.options.fsync); err != nil {
			return err
		}
		b.dropUnsynced = false
	}
	for len(b.leftover) > 0 {
		s := b.leftover[0]
		if err := j.removeFiles(s.number); err != nil {
			return err
		}
		j.used.Add(-s.charge())
		b.leftover = b.leftover[1:]
	}
	return nil
}
