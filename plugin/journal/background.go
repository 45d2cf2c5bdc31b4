package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"
)

const (
	flushInterval       = 20 * time.Millisecond // between two writes of outcomes
	outcomesSync        = time.Second           // between two fsyncs of outcomes: one that is lost costs one delivery more
	sweepInterval       = time.Second
	retryInterval       = time.Second // after an error
	reportInterval      = time.Second
	maxSlotsAtOnce      = 16384
	maxFilesSyncedAtEnd = 64 // outcomes, in Close

	// To collect a segment takes less room than the segment itself. The rest is for outcomes and for what is saved before
	// a segment is dropped.
	minReserve   = 64 << 10 // bytes
	stateReserve = 32 << 10 // bytes, for what is saved alone
)

// background is the state of the journal's goroutine, and of Open before it runs.
type background struct {
	last    uint32 // number given to a segment
	dropped dropped

	queue    []settled // outcomes to be written
	unsynced []*segment
	synced   bool // unsynced was filled

	reserve  int64 // bytes that are to be set aside; 0: not known yet
	reserved int64 // bytes that are

	sealed       []*segment // to be synced and closed
	dirtyOutcome []*segment

	collector      *segment // that messages are moved to; nil: none yet
	collectorSince time.Time
	leftover       []*segment // dropped, but for their files
	dropUnsynced   bool       // that they were is not on the disk yet

	prepareAt, reserveAt, flushAt, syncAt, outcomesSyncAt, sweepAt, reportAt, lookAt time.Time

	prepareFailing, flushFailing, collectFailing bool // to log the first error in a row alone
	reportedRefusal                              bool
	reportedFailure                              *failure

	closeErr error
}

func (j *Journal) run() {
	defer close(j.stopped)
	defer j.lock.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-j.quit:
			j.protect(j.finish)
			return
		case <-j.wake:
		case <-timer.C:
		}
		next := time.Now().Add(retryInterval)
		j.protect(func() { next = j.step(time.Now()) })
		timer.Reset(time.Until(next))
	}
}

// protect keeps a panic from ending the process that the journal lives in.
func (j *Journal) protect(f func()) {
	defer func() {
		if r := recover(); r != nil {
			j.counts.panics.Add(1)
			j.log.Error("panic in the journal", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		}
	}()
	f()
}

// step does what is due and returns when there will be something to do again, unless something wakes the goroutine first.
func (j *Journal) step(now time.Time) time.Time {
	b := &j.background
	full := !now.Before(b.lookAt)
	j.look(full)
	if full {
		b.lookAt = now.Add(lookInterval)
	}
	if j.lost.Load() != nil {
		return j.stepLost(now)
	}
	next := b.lookAt
	if !now.Before(b.sweepAt) {
		b.sweepAt = now.Add(sweepInterval)
		if j.sweep(j.options.now()) {
			b.sweepAt = now // once what is due besides is done
		}
	}
	next = earlier(next, b.sweepAt)
	// due reports whether it is time for what there is to do.
	due := func(at time.Time) bool {
		if !now.Before(at) {
			return true
		}
		next = earlier(next, at)
		return false
	}

	if j.next.Load() == nil && !j.starved.Load() && due(b.prepareAt) {
		j.prepare(now)
	}
	j.takeQueue()
	if len(b.queue) > 0 && due(b.flushAt) {
		b.flushAt = now.Add(flushInterval)
		if !j.flush() {
			b.flushAt = now.Add(retryInterval)
			next = earlier(next, b.flushAt)
		}
	}
	if (b.reserve == 0 || b.reserved < b.reserve) && len(b.queue) == 0 && due(b.reserveAt) {
		b.reserveAt = now.Add(retryInterval)
		j.setAside()
	}
	j.takeSealed()
	if (len(b.sealed) > 0 || j.dirty.Load()) && due(b.syncAt) {
		j.syncLogs()
		b.syncAt = now.Add(j.options.Sync)
	}
	if j.syncRecovered() {
		next = now
	}
	if len(b.dirtyOutcome) > 0 && due(b.outcomesSyncAt) {
		j.syncOutcomes(math.MaxInt)
		b.outcomesSyncAt = now.Add(max(outcomesSync, j.options.Sync))
	}
	if j.somethingToReport() && due(b.reportAt) {
		j.report()
		b.reportAt = now.Add(reportInterval)
	}
	return next
}

// stepLost is step while the journal's files are away: nothing is written under their names, where something else may be.
func (j *Journal) stepLost(now time.Time) time.Time {
	b := &j.background
	j.takeQueue()
	j.takeSealed()
	if (len(b.sealed) > 0 || j.dirty.Load()) && !now.Before(b.syncAt) {
		j.syncLogs()
		b.syncAt = now.Add(j.options.Sync)
	}
	if j.somethingToReport() && !now.Before(b.reportAt) {
		j.report()
		b.reportAt = now.Add(reportInterval)
	}
	return b.lookAt
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// create makes the next segment.
func (j *Journal) create(kind uint32) (*segment, error) {
	b := &j.background
	for number := b.last; number < math.MaxUint32; {
		number++
		h := header{kind: kind, number: number, salt: newSalt(), created: time.Now()}
		f, err := createLog(j.options.Dir, h, j.options.fsync)
		if errors.Is(err, fs.ErrExist) { // one that could not be read
			continue
		}
		if err != nil {
			return nil, err
		}
		b.last = number
		s := newSegment(number, h.salt)
		s.log = f
		s.collector = kind == kindCollector
		j.used.Add(s.charge())
		j.mu.Lock()
		j.segments[number] = s
		j.mu.Unlock()
		return s, nil
	}
	return nil, errors.New("every number of a segment is taken")
}

func (j *Journal) prepare(now time.Time) {
	b := &j.background
	s, err := j.create(kindLog)
	if err != nil {
		b.prepareAt = now.Add(retryInterval)
		if !b.prepareFailing {
			b.prepareFailing = true
			j.log.Error("the journal's next segment could not be made; trying again every second", "error", err)
		}
		return
	}
	if b.prepareFailing {
		b.prepareFailing = false
		j.log.Info("the journal's next segment is made")
	}
	j.next.Store(s)
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
			j.log.Error("fsync of outcomes failed; a failure of the power may have their messages delivered once more",
				"file", outcomesName(s.number), "error", err)
		}
	}
	b.dirtyOutcome = b.dirtyOutcome[:0]
	if err := syncDirectory(j.options.Dir, j.options.fsync); err != nil {
		j.counts.syncErrors.Add(1)
		j.log.Error("fsync of the journal's directory failed", "error", err)
	}
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
		j.log.Error("the room that the journal keeps for outcomes could not be freed", "error", err)
	}
}

func (j *Journal) somethingToReport() bool {
	return j.culprit.Load() != nil || (j.refused.Load() != nil) != j.background.reportedRefusal || j.failed.Load() != j.background.reportedFailure
}

// report logs what the appending thread, which must not wait for a log, has met with.
func (j *Journal) report() {
	b := &j.background
	if f := j.failed.Load(); f != b.reportedFailure {
		b.reportedFailure = f
		j.log.Error("fsync of the journal failed: the latest messages may not survive a failure of the power; the segment is closed, check the disk",
			"file", logName(f.segment.number), "error", f.err)
	}
	j.reportShare(time.Now())
	r := j.refused.Load()
	if (r != nil) == b.reportedRefusal {
		return
	}
	b.reportedRefusal = r != nil
	if r != nil {
		j.log.Error("the journal cannot store messages; they are refused", "error", *r,
			"bytes", j.used.Load(), "max_bytes", j.options.MaxBytes)
	} else {
		j.log.Info("the journal stores messages again", "refused", j.counts.refused.Load())
	}
}

// finish is the goroutine's part of Close.
func (j *Journal) finish() {
	b := &j.background
	j.takeQueue()
	j.look(true)
	if len(b.queue) > 0 && (j.lost.Load() != nil || !j.flush()) {
		b.closeErr = fmt.Errorf("journal: %d outcomes could not be written; their messages are delivered once more", len(b.queue))
	}
	j.takeSealed()
	before := j.counts.syncErrors.Load()
	j.syncLogs()
	if j.lost.Load() == nil {
		j.syncOutcomes(maxFilesSyncedAtEnd)
	}
	if j.counts.syncErrors.Load() != before || j.current.distrusted.Load() {
		b.closeErr = errors.Join(b.closeErr, errors.New("journal: fsync failed; the latest messages may not survive a failure of the power"))
	}
	j.report()
	if err := j.current.log.Close(); err != nil {
		b.closeErr = errors.Join(b.closeErr, fmt.Errorf("journal: %w", err))
	}
	if s := j.next.Swap(nil); s != nil { // no message is in it
		s.log.Close()
		if j.lost.Load() == nil && s.number == b.last { // else it would be taken for a lost one
			_ = j.removeFiles(s.number)
		}
	}
	if c := b.collector; c != nil {
		_ = j.cutTail() // else Open does it
		c.log.Close()
		b.collector = nil
	}
	j.mu.Lock()
	open := j.open
	j.open = nil
	j.mu.Unlock()
	for _, s := range open {
		j.mu.Lock()
		f := s.reader
		s.reader = nil
		j.mu.Unlock()
		f.Close()
	}
}
