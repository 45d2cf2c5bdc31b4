package journal

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A failure is an fsync that failed.
type failure struct {
	segment *segment
	err     error
}

// syncState is the goroutine's, of logs that are not known to be on the disk.
type syncState struct {
	unsynced []*segment
	synced   bool       // unsynced was filled
	sealed   []*segment // to be synced and closed
	syncAt   time.Time
}

func (j *Journal) syncFile(name string) error {
	f, err := os.Open(filepath.Join(j.options.Dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	return j.options.fsync(f)
}

func (j *Journal) takeSealed() {
	j.mu.Lock()
	j.background.sealed = append(j.background.sealed, j.sealed...)
	j.sealed = j.sealed[:0]
	j.mu.Unlock()
}

// syncLogs makes durable what was appended before it is called.
func (j *Journal) syncLogs() {
	b := &j.background
	dirty := j.dirty.Swap(false)
	j.mu.Lock()
	current := j.current
	j.mu.Unlock()
	// A segment sealed since then is synced as current, or in the next round.
	for _, s := range b.sealed {
		if s != current && !s.distrusted.Load() {
			if err := j.timedSync(s.log); err != nil {
				j.distrust(s, err)
			}
		}
		s.log.Close()
		s.closed = true
	}
	b.sealed = b.sealed[:0]
	if dirty && !current.distrusted.Load() {
		if err := j.timedSync(current.log); err != nil {
			j.distrust(current, err)
		}
	}
}

// syncRecovered makes durable what recovery read, which the former process may not have done, one segment at a time. It
// reports whether there are more.
func (j *Journal) syncRecovered() bool {
	b := &j.background
	if !b.synced {
		b.synced = true
		j.mu.Lock()
		for _, s := range j.segments {
			if s.unsynced {
				b.unsynced = append(b.unsynced, s)
			}
		}
		j.mu.Unlock()
		slices.SortFunc(b.unsynced, func(x, y *segment) int { return cmp.Compare(y.number, x.number) }) // newest first
	}
	if len(b.unsynced) == 0 {
		return false
	}
	s := b.unsynced[0]
	b.unsynced = b.unsynced[1:]
	s.unsynced = false
	if err := j.syncFile(logName(s.number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.distrust(s, err)
	}
	return len(b.unsynced) > 0
}

// timedSync is fsync, with figures.
func (j *Journal) timedSync(f *os.File) error {
	began := time.Now()
	err := j.options.fsync(f)
	took := int64(time.Since(began))
	c := &j.counts
	c.syncs.Add(1)
	c.syncNanos.Add(took)
	c.syncLast.Store(took)
	if took > c.syncMax.Load() {
		c.syncMax.Store(took)
	}
	return err
}

// distrust notes that an fsync of s failed. The kernel reports that once and then takes the pages it could not write as
// clean, so a later fsync that succeeds says nothing about them. Nothing more is appended to the segment.
func (j *Journal) distrust(s *segment, err error) {
	j.counts.syncErrors.Add(1)
	// In this order: who finds the segment distrusted finds the reason.
	j.failed.Store(&failure{s, err})
	s.distrusted.Store(true)
	j.poke()
}
