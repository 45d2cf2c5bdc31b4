package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"mosquitto-bouncer/plugin/crash"
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
	stateReserve = 32 << 10 // bytes, only for what is saved
)

// background is the state of the journal's goroutine, and of Open before it runs. Each part is declared next to what uses it.
type background struct {
	last uint32 // number given to a segment

	outcomesState
	reserveState
	syncState
	collectorState
	retireState

	prepareAt, sweepAt, reportAt, lookAt time.Time

	prepareFailing, collectFailing bool // to log only the first error in a row
	reportedRefusal                bool
	reportedFailure                *failure

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
	defer crash.Then(j.log, "journal", func() { j.counts.panics.Add(1) })
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
	return nil, errors.New("all segment numbers are used")
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

func (j *Journal) somethingToReport() bool {
	return j.culprit.Load() != nil || (j.refused.Load() != nil) != j.background.reportedRefusal || j.failed.Load() != j.background.reportedFailure
}

// report logs what the appending thread, which must not wait for a log, has met with.
func (j *Journal) report() {
	b := &j.background
	if f := j.failed.Load(); f != b.reportedFailure {
		b.reportedFailure = f
		j.log.Error("fsync of the journal failed: the latest messages may not survive a power failure; the segment is closed, check the disk",
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
		b.closeErr = fmt.Errorf("journal: %d outcomes could not be written; their messages are delivered again", len(b.queue))
	}
	j.takeSealed()
	before := j.counts.syncErrors.Load()
	j.syncLogs()
	if j.lost.Load() == nil {
		j.syncOutcomes(maxFilesSyncedAtEnd)
	}
	if j.counts.syncErrors.Load() != before || j.current.distrusted.Load() {
		b.closeErr = errors.Join(b.closeErr, errors.New("journal: fsync failed; the latest messages may not survive a power failure"))
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
