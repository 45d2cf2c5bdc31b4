package journal

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Collecting is what keeps settled messages from taking room. A segment of which half or more is settled is read once
// more: the messages that still wait are copied into a segment of another kind, a collector; of the settled ones their
// ids go there, as long as recovery needs them; then the segment is dropped. What was copied is on the disk before that,
// and the segment is dropped by saving the journal's own state ([dropped]), which holds or does not: a crash before it
// leaves the segment as it was, and the copies at the end of the collector are cut off by Open, because the segment that
// they name as theirs is still there. A position stays the name of its message: Journal.moved knows where it went, and
// the record has it, so that recovery gives messages in the order of acceptance wherever they are.
//
// The other way that was considered is to leave everything in its place and to give the disk's blocks of settled records
// back (fallocate with FALLOC_FL_PUNCH_HOLE). It needs no copies and no second name. But not every file system can do it,
// none gives back less than a block, so that ids between payloads of 1 KiB would still take a quarter of the room, and
// one that was not punched could not be told from a damaged one.
const (
	collectTurn    = 100 * time.Millisecond // then it is seen to what else is due; a segment is collected as a whole
	collectPause   = 2 * time.Second        // for which no outcome came, before messages that still wait are moved
	damagedPause   = time.Minute            // before a segment that is damaged is tried again
	collectBuffer  = 1 << 20                // bytes
	collectorPart  = 4                      // a collector takes this part of a segment, in bytes
	collectorSpan  = 4                      // and this part of Keep, in time
	smallCollector = 16                     // below this part of a segment one is emptied into the next
	pressurePart   = 4                      // less than this part of MaxBytes is free: pressure
	idsOfSettled   = idSize                 // what a settled message is charged, before it is collected
)

// kept is how many bytes of its log would be copied: messages that are not settled, and ids that are needed. The segment
// is closed, or a collector.
func (s *segment) kept(oldest int64) int64 {
	kept := s.end - logStart - s.settledBytes
	if s.newestID < oldest {
		kept -= s.idRecords
	}
	return kept
}

// collectable reports whether it is worth collecting s. j.mu is held.
func (j *Journal) collectable(s *segment, oldest int64, pressure bool, now time.Time) bool {
	if !s.closed || now.Before(s.retryAt) {
		return false
	}
	size, kept := s.end-logStart, s.kept(oldest)
	small := s.collector && s.newestID < oldest && size < j.options.SegmentBytes/smallCollector
	switch {
	case kept == 0, small, !s.collector && s.outcomes >= s.accepted.count+s.stray.count:
		return true
	case pressure:
		return kept*8 <= size*7
	}
	return kept*2 <= size && now.Sub(s.settledAt) >= collectPause
}

// sweep collects segments, at the time now, as far as it is worth it, for collectTurn. It reports whether there is more
// to do at once.
func (j *Journal) sweep(now time.Time) (more bool) {
	b := &j.background
	began := time.Now()
	oldest := now.Add(-j.options.Keep).Unix() // what is older need not be kept
	pressure := j.used.Load() > j.options.MaxBytes-j.options.MaxBytes/pressurePart
	if err := j.removeLeftover(); err != nil {
		j.collectFails(err)
	}
	if c := b.collector; c != nil && pressure && c.kept(oldest)*2 < c.end-logStart {
		if err := j.closeCollector(); err != nil {
			j.collectFails(err)
		}
	}
	collected, failed := 0, len(b.leftover) > 0
	for _, s := range j.candidates(oldest, pressure, began) {
		if time.Since(began) > collectTurn {
			more = true
			break
		}
		err := j.collect(s, oldest)
		if isFull(err) {
			j.starve(0)
			err = j.collect(s, oldest)
		}
		switch {
		case err == nil:
			collected++
		case errors.Is(err, errDamaged):
			s.retryAt = time.Now().Add(damagedPause)
		default: // it must not keep the others from their turn
			s.retryAt = time.Now().Add(retryInterval)
			if !errors.Is(err, ErrNotYet) {
				failed = true
				j.collectFails(fmt.Errorf("%s: %w", logName(s.number), err))
			}
		}
	}
	if !failed && !more {
		b.collectFailing = false
	}
	if collected > 0 {
		// At once, or outcomes take it.
		if b.reserved < stateReserve && makeReserve(j.options.Dir, stateReserve) == nil {
			b.reserved = stateReserve
		}
		if r := j.refused.Load(); r != nil && *r == ErrFull {
			j.refused.CompareAndSwap(r, nil) // there is room again
		}
	}
	return more
}

// candidates returns the segments that are worth collecting, oldest first.
func (j *Journal) candidates(oldest int64, pressure bool, now time.Time) (candidates []*segment) {
	j.mu.Lock()
	for _, s := range j.segments {
		if j.collectable(s, oldest, pressure, now) {
			candidates = append(candidates, s)
		}
	}
	j.mu.Unlock()
	slices.SortFunc(candidates, func(x, y *segment) int { return cmp.Compare(x.number, y.number) })
	return candidates
}

// collectFails logs the first error in a row.
func (j *Journal) collectFails(err error) {
	if !j.background.collectFailing {
		j.background.collectFailing = true
		j.log.Error("the journal could not free the space of settled messages; trying again every second", "error", err)
	}
}

// collect moves what is needed of s elsewhere and drops it. The error is ErrNotYet if it is too early.
func (j *Journal) collect(s *segment, oldest int64) error {
	if err := j.cutTail(); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(j.options.Dir, logName(s.number)))
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := j.tryCollect(s, f, oldest)
	if errors.Is(err, ErrNotYet) && !errors.Is(err, errDamaged) && s.kept(math.MinInt64) < s.end-logStart {
		c, err = j.tryCollect(s, f, math.MinInt64) // ids that are too old to be needed are kept, then
	}
	if err != nil {
		return err
	}
	c.finish()
	j.forget(s)
	return j.removeLeftover()
}

// tryCollect is collect up to where the segment is dropped for good. With an error nothing has changed.
func (j *Journal) tryCollect(s *segment, f *os.File, oldest int64) (*collection, error) {
	c := &collection{j: j, from: s, oldest: oldest, expired: math.MinInt64, newestID: math.MinInt64,
		charges: make(map[string]int64), bytes: make(map[string]int64)}
	err := c.copy(f)
	if err == nil && c.expired != math.MinInt64 && j.options.BeforeDrop != nil {
		if err = j.options.BeforeDrop(c.expired); c.damaged && errors.Is(err, ErrNotYet) {
			err = errDamaged
		}
		j.options.after("before drop")
	}
	if err == nil && c.to != nil {
		err = j.options.fsync(c.to.log)
		j.options.after("copies synced")
	}
	if err == nil {
		err = j.saveDropped(s, c.counted.delivered, c.counted.dead)
		j.options.after("dropped")
	}
	if err != nil {
		c.undo()
		j.options.after("undone")
	}
	return c, err
}
