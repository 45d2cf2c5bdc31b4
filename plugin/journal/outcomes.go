package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Outcome is what happened to an accepted message. The zero value is Pending.
type Outcome uint8

// Outcomes.
const (
	Pending   Outcome = iota
	Delivered         // the backend has it
	Dead              // it is a dead letter, and durably so
	Settled           // one or the other: of the message no more than its id is left
)

func (o Outcome) String() string {
	switch o {
	case Pending:
		return "pending"
	case Delivered:
		return "delivered"
	case Dead:
		return "dead"
	case Settled:
		return "settled"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// A settled message waits for its outcome to be written.
type settled struct {
	pos  Position
	at   Position // where it is: pos, unless it was moved
	kind Outcome
}

// outcomesState is the goroutine's, of outcomes on their way to the disk.
type outcomesState struct {
	queue                   []settled // outcomes to be written
	dirtyOutcome            []*segment
	flushAt, outcomesSyncAt time.Time
	flushFailing            bool // to log only the first error in a row
}

// Done says what happened to the message at pos, once for each. It returns at once: the outcome is written within some
// 20 ms by the journal's goroutine. One that a crash loses makes the message pending again.
func (j *Journal) Done(pos Position, o Outcome) {
	switch o {
	case Delivered:
		j.delivered.Add(1)
	case Dead:
		j.dead.Add(1)
	default:
		return
	}
	j.outcomesMu.Lock()
	j.outcomes = append(j.outcomes, settled{pos: pos, kind: o})
	first := len(j.outcomes) == 1
	j.outcomesMu.Unlock()
	if first {
		j.poke()
	}
}

func (j *Journal) takeQueue() {
	b := &j.background
	j.outcomesMu.Lock()
	if len(b.queue) == 0 {
		b.queue, j.outcomes = j.outcomes, b.queue[:0]
	} else {
		b.queue = append(b.queue, j.outcomes...)
		j.outcomes = j.outcomes[:0]
	}
	j.outcomesMu.Unlock()
}

// flush writes the outcomes that wait, segment by segment, and reports whether none is left.
func (j *Journal) flush() bool {
	b := &j.background
	for some := range slices.Chunk(b.queue, 256) { // the appending thread may want the lock
		j.mu.Lock()
		for i := range some {
			some[i].at = j.resolve(some[i].pos)
		}
		j.mu.Unlock()
	}
	slices.SortStableFunc(b.queue, func(x, y settled) int { return cmp.Compare(x.at.segment(), y.at.segment()) })
	var left []settled
	var failed error
	for rest := b.queue; len(rest) > 0; {
		n := 1
		for n < len(rest) && n < maxSlotsAtOnce && rest[n].at.segment() == rest[0].at.segment() {
			n++
		}
		if err := j.writeOutcomes(rest[:n]); err != nil {
			failed = err
			left = append(left, rest[:n]...)
		}
		rest = rest[n:]
	}
	if len(left) == 0 && cap(b.queue) <= 1<<16 {
		b.queue = b.queue[:0]
	} else {
		b.queue = left
	}
	if failed != nil && !b.flushFailing {
		j.log.Error("outcomes could not be written to the journal; trying again every second", "error", failed)
	}
	b.flushFailing = failed != nil
	if isFull(failed) {
		j.starve(stateReserve)
	}
	return failed == nil
}

// writeOutcomes writes outcomes of one segment behind those it has.
func (j *Journal) writeOutcomes(all []settled) error {
	number := all[0].at.segment()
	j.mu.Lock()
	s := j.segments[number]
	j.mu.Unlock()
	if s == nil {
		j.log.Warn("an outcome names a message that the journal does not have", "position", all[0].pos)
		return nil
	}
	start := s.outcomesEnd
	var data []byte
	if start == 0 {
		data = header{kind: kindOutcomes, number: number, salt: s.salt, created: time.Now()}.encode()
	}
	var delivered, dead uint64
	for _, o := range all {
		data = appendSlot(data, start+int64(len(data)), o.at.offset(), o.kind, s.seed)
		if o.kind == Delivered {
			delivered++
		} else {
			dead++
		}
	}
	f, err := os.OpenFile(filepath.Join(j.options.Dir, outcomesName(number)), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(data, start); err != nil {
		_ = f.Truncate(start) // where that fails it is overwritten
		return err
	}
	j.options.after("outcomes written")
	s.outcomesEnd = start + int64(len(data))
	s.outcomes += uint64(len(all))
	s.delivered += delivered
	s.dead += dead
	s.settledAt = time.Now()
	j.account(s, all)
	if !slices.Contains(j.background.dirtyOutcome, s) {
		j.background.dirtyOutcome = append(j.background.dirtyOutcome, s)
	}
	return nil
}

// account notes whose messages are settled. One that cannot be read is charged until its segment is dropped.
func (j *Journal) account(s *segment, all []settled) {
	f, err := os.Open(filepath.Join(j.options.Dir, logName(s.number)))
	if err == nil {
		defer f.Close()
		var head [recordHead]byte
		for _, o := range all {
			n, _ := f.ReadAt(head[:], int64(o.at.offset()))
			if device, size, ok := recordOwner(head[:n], o.at.offset(), s.seed); ok {
				s.settledBytes += int64(size)
				j.shares.settle(device, int64(size)+slotSize)
			}
		}
	}
	j.mu.Lock()
	for _, o := range all {
		if o.at != o.pos {
			j.moved.settled(o.pos)
		}
	}
	j.mu.Unlock()
}

func (j *Journal) syncOutcomes(limit int) {
	b := &j.background
	for _, s := range b.dirtyOutcome[:min(limit, len(b.dirtyOutcome))] {
		if err := j.syncFile(outcomesName(s.number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			j.counts.syncErrors.Add(1)
			j.log.Error("fsync of outcomes failed; after a power failure their messages may be delivered again",
				"file", outcomesName(s.number), "error", err)
		}
	}
	b.dirtyOutcome = b.dirtyOutcome[:0]
	if err := syncDirectory(j.options.Dir, j.options.fsync); err != nil {
		j.counts.syncErrors.Add(1)
		j.log.Error("fsync of the journal's directory failed", "error", err)
	}
}
