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
		j.log.Error("the journal could not free the room of settled messages; trying again every second", "error", err)
	}
}

// A collection is one segment on its way into a collector.
type collection struct {
	j      *Journal
	from   *segment
	to     *segment
	oldest int64 // ids of messages that are stamped earlier are not needed

	outcomes []outcome // of from, those that the pass has not come to

	at        int64 // where buf goes in to's log
	buf       []byte
	block     idBlock
	newestID  int64
	idRecords int64
	charges   map[string]int64 // ids' bytes, by device
	moved     []movedRecord
	bytes     map[string]int64 // by device, what its accounts change by
	expired   int64            // newest timestamp of what is not kept; the least value: all is
	found     tally            // records and outcomes
	counted   struct{ delivered, dead uint64 }
	damaged   bool
}

// A movedRecord is a message that is in a collector.
type movedRecord struct {
	origin Position
	offset uint32
	size   int
}

// errDamaged is for a segment in which not every message is found that is known to be in it.
var errDamaged = fmt.Errorf("%w: it is damaged", ErrNotYet)

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

// copy passes over the segment and writes what is needed of it behind the collector's end.
func (c *collection) copy(f *os.File) (err error) {
	s := c.from
	o, size, err := c.j.openOutcomes(s.number)
	if err != nil {
		return err
	}
	if o != nil {
		c.outcomes, _, _ = readOutcomes(o, size, s.seed)
		o.Close()
	}
	count := func(o outcome) {
		switch o.kind {
		case Delivered:
			c.counted.delivered++
		default:
			c.counted.dead++
		}
	}
	result := scanRecords(f, s.end, s.seed, func(offset uint32, size int, r *record) bool {
		if r.ids != nil {
			err = c.keepBlock(r.ids)
			return err == nil
		}
		for len(c.outcomes) > 0 && c.outcomes[0].offset < offset {
			c.found.add(c.outcomes[0].offset)
			count(c.outcomes[0])
			c.outcomes = c.outcomes[1:]
		}
		c.found.add(offset)
		if len(c.outcomes) > 0 && c.outcomes[0].offset == offset {
			count(c.outcomes[0])
			c.outcomes = c.outcomes[1:]
			c.bytes[r.Device] -= idsOfSettled // what its id takes is counted with the block
			err = c.keepID(&r.Accepted)
		} else {
			err = c.move(s.originOf(offset, r), size, &r.Accepted)
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	for _, o := range c.outcomes {
		c.found.add(o.offset)
		count(o)
	}
	// What would be lost by an error is not dropped on the word of a counter: every message was found, or its outcome.
	if want := s.accepted.plus(s.stray); c.found != want {
		return errDamaged
	}
	// Of a settled message that cannot be read, or a block of ids, no id is left: until it would be too old anyway, its
	// timestamp is not refused for good.
	if result.damaged > 0 {
		c.damaged, c.expired = true, max(c.expired, s.newest, s.newestID)
	}
	// Those outcomes were no message's at the start either.
	c.counted.delivered -= s.strayDelivered
	c.counted.dead -= s.stray.count - s.strayDelivered
	if err := c.endBlock(); err != nil {
		return err
	}
	return c.write()
}

// originOf returns the position at which a record of the segment was accepted.
func (s *segment) originOf(offset uint32, r *record) Position {
	if r.origin != 0 {
		return r.origin
	}
	return s.position(offset)
}

// begin finds the collector that is written to.
func (c *collection) begin() (err error) {
	if c.to == nil {
		if c.to, err = c.j.collector(); err == nil {
			c.at = c.to.end
		}
	}
	return err
}

func (c *collection) move(origin Position, size int, a *Accepted) error {
	if err := c.begin(); err != nil {
		return err
	}
	offset := c.at + int64(len(c.buf))
	if offset+maxRecord > math.MaxUint32 {
		return fmt.Errorf("%w: the collector is full", ErrFull)
	}
	before := len(c.buf)
	c.buf = appendMoved(c.buf, a, move{origin, c.from.number}, uint32(offset), c.to.seed)
	grown := len(c.buf) - before
	c.moved = append(c.moved, movedRecord{origin, uint32(offset), grown})
	c.bytes[a.Device] += int64(grown - size)
	if len(c.buf) >= collectBuffer {
		return c.write()
	}
	return nil
}

// keepBlock keeps what is needed of a block of ids.
func (c *collection) keepBlock(body []byte) (err error) {
	ok := readIDs(body, func(a *Accepted, _ int) {
		if err == nil {
			err = c.keepID(a)
		}
	})
	if !ok {
		return errDamaged
	}
	return err
}

func (c *collection) keepID(a *Accepted) error {
	if a.Timestamp < c.oldest {
		c.expired = max(c.expired, a.Timestamp)
		return nil
	}
	if c.block.add(a) {
		return nil
	}
	if err := c.endBlock(); err != nil {
		return err
	}
	c.block.add(a)
	return nil
}

// endBlock writes the ids so far.
func (c *collection) endBlock() error {
	if c.block.n == 0 {
		return nil
	}
	if err := c.begin(); err != nil {
		return err
	}
	before := len(c.buf)
	c.buf = c.block.appendTo(c.buf, uint32(c.at+int64(before)), c.to.seed)
	c.idRecords += int64(len(c.buf) - before)
	c.newestID = max(c.newestID, c.block.newest)
	for device, bytes := range c.block.charges {
		c.charges[device] += bytes
		c.bytes[device] += bytes
	}
	c.block.n = 0
	if len(c.buf) >= collectBuffer {
		return c.write()
	}
	return nil
}

func (c *collection) write() error {
	if len(c.buf) == 0 {
		return nil
	}
	if _, err := c.to.log.WriteAt(c.buf, c.at); err != nil {
		return err
	}
	c.at += int64(len(c.buf))
	c.buf = c.buf[:0]
	c.j.options.after("copies written")
	return nil
}

// undo cuts off what was written. Until that has succeeded nothing else is collected: what was copied must not be there
// any more when its segment is dropped by another attempt.
func (c *collection) undo() {
	if c.to == nil {
		return
	}
	c.to.tail = c.to.log.Truncate(c.to.end) != nil
}

// finish makes the copies what their positions mean. The segment is gone but for its files.
func (c *collection) finish() {
	j, s := c.j, c.from
	if to := c.to; to != nil {
		before := to.charge()
		for moved := range slices.Chunk(c.moved, 256) { // the appending thread may want the lock
			j.mu.Lock()
			for _, m := range moved {
				to.accepted.add(m.offset)
				j.moved.set(m.origin, to.number, m.offset)
			}
			j.mu.Unlock()
		}
		to.end = c.at
		to.newestID = max(to.newestID, c.newestID)
		to.idRecords += c.idRecords
		for device, bytes := range c.charges {
			to.chargeIDs(device, bytes)
		}
		j.used.Add(to.charge() - before)
	}
	for device, bytes := range c.bytes {
		j.shares.add(device, bytes)
	}
	for device, bytes := range s.ids {
		j.shares.add(device, -bytes)
	}
	j.delivered.Add(c.counted.delivered - s.delivered)
	j.dead.Add(c.counted.dead - s.dead)
}

func (s *segment) chargeIDs(device string, bytes int64) {
	if s.ids == nil {
		s.ids = make(map[string]int64)
	}
	s.ids[device] += bytes
}

// cutTail cuts off what an earlier collection that failed has left.
func (j *Journal) cutTail() error {
	c := j.background.collector
	if c == nil || !c.tail {
		return nil
	}
	if err := c.log.Truncate(c.end); err != nil {
		return fmt.Errorf("what was copied in vain could not be cut off: %w", err)
	}
	c.tail = false
	return nil
}

// collector returns the segment that messages are moved to, ready for more.
func (j *Journal) collector() (*segment, error) {
	b := &j.background
	if c := b.collector; c != nil {
		old := c.newestID != math.MinInt64 && time.Since(b.collectorSince) > j.options.Keep/collectorSpan
		if c.end < logStart+j.options.SegmentBytes/collectorPart && !old {
			return c, nil
		}
		if err := j.closeCollector(); err != nil {
			return nil, err
		}
	}
	s, err := j.create(kindCollector)
	if err != nil {
		return nil, err
	}
	b.collector, b.collectorSince = s, time.Now()
	return s, nil
}

// closeCollector has the next one begun.
func (j *Journal) closeCollector() error {
	if err := j.cutTail(); err != nil {
		return err
	}
	c := j.background.collector
	// What was cut off of it must not come back once its segment is dropped.
	if err := j.options.fsync(c.log); err != nil {
		return err
	}
	c.log.Close()
	c.log, c.closed = nil, true
	j.background.collector = nil
	return nil
}

// saveDropped notes durably that s is no more, with what became of its messages.
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
		// A process that is killed now finds s dropped; after a failure of the power s may be there, and the copies are cut
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
