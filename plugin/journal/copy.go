package journal

import (
	"fmt"
	"math"
	"os"
	"slices"
	"time"
)

// collectorState is the goroutine's, of the segment that messages are moved to.
type collectorState struct {
	collector      *segment // nil: none yet
	collectorSince time.Time
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
		return fmt.Errorf("an unused copy could not be cut off: %w", err)
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
