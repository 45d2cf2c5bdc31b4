package journal

import (
	"errors"
	"fmt"
)

// Append stores a message: with one write(2), and an fsync if Sync is 0. The message is stored if and only if the error
// is nil. Nothing of a is kept. The broker's thread only.
func (j *Journal) Append(a *Accepted) (Position, error) {
	pos, err := j.append(a)
	if err != nil {
		j.counts.refused.Add(1)
		if err == ErrShare {
			j.noteShare(a.Device)
		} else if !errors.Is(err, ErrTooLarge) {
			if r := j.refused.Load(); r == nil || !errors.Is(err, ErrFull) || !errors.Is(*r, ErrFull) {
				reason := err // escapes, which err must not do on the way of every message
				j.refused.Store(&reason)
				j.poke()
			}
		}
		return 0, err
	}
	if j.refused.Load() != nil {
		j.refused.Store(nil)
		j.poke()
	}
	return pos, nil
}

func (j *Journal) append(a *Accepted) (Position, error) {
	if j.closed.Load() {
		return 0, ErrClosed
	}
	if lost := j.lost.Load(); lost != nil {
		return 0, *lost
	}
	n, err := recordSize(a)
	if err != nil {
		return 0, err
	}
	if int64(n) > j.options.MaxBytes-2*logStart {
		return 0, fmt.Errorf("%w: %d bytes, the journal may take %d", ErrTooLarge, n, j.options.MaxBytes)
	}
	cost := int64(n) + slotSize
	share := j.shares.of(a.Device)
	if a.Waited == 0 && j.shares.full(share, cost) { // what an operator requeues makes room among the dead letters
		return 0, ErrShare
	}
	if j.starved.Load() {
		return 0, errStarved
	}
	if j.used.Load()+cost > j.options.MaxBytes {
		if j.active.end-logStart >= j.options.SegmentBytes/2 {
			// What is settled in it takes room until it is sealed, and nothing else would seal it.
			if next := j.next.Swap(nil); next != nil {
				j.begin(next)
			}
		}
		return 0, ErrFull
	}
	s, err := j.room(int64(n))
	if err != nil {
		return 0, err
	}

	offset := uint32(s.end)
	j.buf = appendRecord(j.buf[:0], a, offset, s.seed)
	_, err = s.log.WriteAt(j.buf, s.end)
	if cap(j.buf) > 1<<20 {
		j.buf = nil
	}
	if err != nil {
		// What was written of it is cut off. Where that fails it is overwritten by the next, or found torn.
		_ = s.log.Truncate(s.end)
		if isFull(err) {
			return 0, fmt.Errorf("%w: %w", ErrFull, err)
		}
		return 0, fmt.Errorf("journal: %w", err)
	}
	if j.options.Sync == 0 {
		if err := j.timedSync(s.log); err != nil {
			_ = s.log.Truncate(s.end)
			j.distrust(s, err)
			return 0, fmt.Errorf("journal: %w", err)
		}
	}
	s.end += int64(n)
	s.accepted.add(offset)
	s.newest = max(s.newest, a.Timestamp)
	j.used.Add(cost)
	share.bytes.Add(cost)
	j.accepted.Add(1)
	if j.options.Sync != 0 && !j.dirty.Load() {
		j.dirty.Store(true)
		j.poke()
	}
	return s.position(offset), nil
}

// room returns the segment for a record of n bytes, which is the next one if the active is full or not to be trusted.
func (j *Journal) room(n int64) (*segment, error) {
	s := j.active
	broken := s.distrusted.Load()
	if !broken && (s.end+n <= j.options.SegmentBytes || s.accepted.count == 0) {
		return s, nil
	}
	next := j.next.Swap(nil)
	if next == nil {
		if broken {
			return nil, fmt.Errorf("journal: the disk failed: %w", j.failed.Load().err)
		}
		if s.end+n > 1<<32-1 {
			j.poke()
			return nil, fmt.Errorf("%w: no next segment yet", ErrFull)
		}
		return s, nil
	}
	j.begin(next)
	return next, nil
}

// begin seals the active segment and continues with the next.
func (j *Journal) begin(next *segment) {
	j.mu.Lock()
	j.sealed = append(j.sealed, j.active)
	j.current = next
	j.mu.Unlock()
	j.active = next
	j.poke()
}
