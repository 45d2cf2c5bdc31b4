package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// recover passes over what is in the directory and returns the number after which new segments are numbered.
func (j *Journal) recover(recovery Recovery) (last uint32, err error) {
	began := time.Now()
	dir := j.options.Dir
	l, err := list(dir)
	if err != nil {
		return 0, err
	}
	for _, name := range l.foreign {
		j.counts.foreign.Add(1)
		j.log.Warn("a file in the journal's directory does not belong to the journal; it is ignored", "file", filepath.Join(dir, name))
	}
	for _, name := range l.leftovers {
		if err := removeIfThere(filepath.Join(dir, name)); err != nil {
			return 0, fmt.Errorf("journal: %w", err)
		}
	}
	d, err := loadDropped(dir)
	if errors.Is(err, ErrDamaged) {
		j.log.Error("the journal's totals are damaged; they start again", "error", err)
	} else if err != nil {
		return 0, err
	}
	j.delivered.Store(d.Delivered)
	j.dead.Store(d.Dead)
	j.accepted.Store(d.Delivered + d.Dead)

	for _, r := range d.Ranges {
		last = max(last, r.Last)
	}
	collectors, ordinary, err := j.classify(l.logs, &d)
	if err != nil {
		return 0, err
	}
	rec := j.newRecoverer(recovery, collectors, ordinary, &d)
	defer rec.close()
	var present, blank []uint32
	for _, number := range slices.Concat(collectors, ordinary) {
		state, err := j.recoverSegment(number, &d, rec)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, errUnreadable):
			j.counts.unreadable.Add(1)
			j.log.Error("a segment of the journal cannot be read: its messages are lost unless the file is repaired; the file is kept",
				"file", filepath.Join(dir, logName(number)), "error", err)
			present = append(present, number)
			continue
		case err != nil:
			return 0, fmt.Errorf("journal: %s: %w", filepath.Join(dir, logName(number)), err)
		}
		switch state {
		case segmentBlank:
			blank = append(blank, number)
			fallthrough
		case segmentRecovered:
			present = append(present, number)
			last = max(last, number)
		}
	}
	rec.giveBefore(math.MaxUint64)
	last = max(last, rec.last)
	slices.Sort(present)
	slices.Sort(blank)
	j.reportMissing(present, &d)
	if err := j.removeStrayOutcomes(l, present); err != nil {
		return 0, err
	}
	// Those made ready for messages that did not come.
	for i := len(blank) - 1; i >= 0 && blank[i] == last && present[len(present)-1] == last; i-- {
		if err := j.removeFiles(last); err != nil {
			return 0, fmt.Errorf("journal: %w", err)
		}
		if s := j.segments[last]; s != nil {
			j.used.Add(-s.charge())
			delete(j.segments, last)
		}
		present = present[:len(present)-1]
		last--
	}
	j.background.dropped = d
	j.log.Info("journal recovered", "segments", len(j.segments), "accepted", j.accepted.Load(),
		"pending", j.accepted.Load()-j.delivered.Load()-j.dead.Load(), "damaged", j.counts.damaged.Load(),
		"bytes", j.used.Load(), "took", time.Since(began).Round(time.Millisecond))
	return last, nil
}

var errUnreadable = errors.New("unreadable")

type segmentState int

const (
	segmentRecovered segmentState = iota
	segmentBlank                  // without a record, or the beginning of one
	segmentDropped                // what was left of it is removed
)

func (j *Journal) recoverSegment(number uint32, d *dropped, rec *recoverer) (segmentState, error) {
	dir := j.options.Dir
	f, err := os.Open(filepath.Join(dir, logName(number)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return 0, err // a mistake, not damage: to start without what was accepted would make it worse
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()

	outcomesFile, outcomesSize, err := j.openOutcomes(number)
	if err != nil {
		return 0, err
	}
	if outcomesFile != nil {
		defer outcomesFile.Close()
	}
	h, err := readLogHeader(f)
	if errors.Is(err, errDamagedHeader) && outcomesFile != nil && size > logStart {
		h, err = readHeader(outcomesFile, kindOutcomes, 0)
	}
	switch {
	case errors.Is(err, errNewerVersion):
		return 0, err
	case err != nil && size <= logStart:
		return segmentBlank, nil
	case err != nil:
		j.used.Add(size)
		return 0, fmt.Errorf("%w: %w", errUnreadable, err)
	case h.number != number:
		j.used.Add(size)
		return 0, fmt.Errorf("%w: it is segment %s under another name", errUnreadable, logName(h.number))
	case d.has(number, h.salt):
		return segmentDropped, j.removeFiles(number)
	}

	s := newSegment(number, h.salt)
	s.closed = true
	s.unsynced = true
	s.end = max(size, logStart)
	s.collector = h.kind == kindCollector
	j.segments[number] = s
	if size <= logStart {
		j.used.Add(s.charge())
		return segmentBlank, nil
	}
	var outcomes []outcome
	if outcomesFile != nil && outcomesSize >= headerSize {
		var damaged uint64
		outcomes, s.outcomes, damaged = readOutcomes(outcomesFile, outcomesSize, s.seed)
		s.outcomesEnd = headerSize + (outcomesSize-headerSize)/slotSize*slotSize
		if damaged > 0 {
			j.counts.damagedOutcomes.Add(damaged)
			j.log.Warn("outcomes in the journal are damaged; their messages are delivered again",
				"file", filepath.Join(dir, outcomesName(number)), "damaged", damaged)
		}
	}
	if err := rec.scan(s, f, size, outcomes); err != nil {
		return 0, err
	}
	j.used.Add(s.charge())
	return segmentRecovered, nil
}

// openOutcomes returns nil if the segment has none.
func (j *Journal) openOutcomes(number uint32) (*os.File, int64, error) {
	f, err := os.Open(filepath.Join(j.options.Dir, outcomesName(number)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (j *Journal) removeFiles(number uint32) error {
	if err := removeIfThere(filepath.Join(j.options.Dir, logName(number))); err != nil {
		return err
	}
	j.options.after("log removed")
	return removeIfThere(filepath.Join(j.options.Dir, outcomesName(number)))
}

// reportMissing finds the gaps between the segments that are present. Those before the first are taken as dropped.
func (j *Journal) reportMissing(present []uint32, d *dropped) {
	for i := 1; i < len(present); i++ {
		from, to := present[i-1], present[i] // both excluded
		gap := uint64(to-from) - 1 - d.between(from, to)
		if gap > 0 {
			j.counts.missing.Add(gap)
			j.log.Error("segments of the journal are missing; their messages are lost", "count", gap,
				"after", logName(from), "before", logName(to))
		}
	}
}

// removeStrayOutcomes removes outcomes whose log is gone.
func (j *Journal) removeStrayOutcomes(l listing, present []uint32) error {
	for _, number := range l.outcomes {
		if slices.Contains(present, number) || slices.Contains(l.logs, number) {
			continue
		}
		f, _, err := j.openOutcomes(number)
		if f == nil {
			return err
		}
		h, err := readHeader(f, kindOutcomes, 0)
		f.Close()
		path := filepath.Join(j.options.Dir, outcomesName(number))
		if err != nil || h.number != number {
			j.counts.foreign.Add(1)
			j.log.Warn("a file in the journal's directory does not belong to the journal; it is ignored", "file", path)
			continue
		}
		j.log.Warn("outcomes of a segment that is gone are removed", "file", path)
		if err := removeIfThere(path); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	return nil
}
