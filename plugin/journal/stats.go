package journal

import (
	"sync/atomic"
	"time"
)

type counts struct {
	damaged, tornBytes, missing, unreadable, foreign, damagedOutcomes atomic.Uint64
	overShare, refused, dropped, syncs, syncErrors, panics            atomic.Uint64
	syncNanos, syncLast, syncMax                                      atomic.Int64
}

// Stats is the state of a journal. Accepted = Delivered + Dead + Pending, over the life of the journal: across restarts,
// and including segments that were dropped. Only messages that recovery found damaged are in none of them any more.
type Stats struct {
	Accepted, Delivered, Dead, Pending uint64

	Bytes, MaxBytes int64
	Segments        int
	Distrusted      int // segments, an fsync of which failed

	// Since Open.
	Refused    uint64 // Appends that failed
	OverShare  uint64 // of them, those of devices that had taken their share
	Dropped    uint64 // segments
	Syncs      uint64 // of logs
	SyncErrors uint64
	SyncTime   time.Duration // of all together
	SyncLast   time.Duration
	SyncMax    time.Duration
	Panics     uint64

	// Found by Open.
	Damaged         uint64 // messages that were lost to damage
	TornBytes       uint64 // cut off at the ends of logs
	Missing         uint64 // segments
	Unreadable      uint64 // segments without a header that could be used; their files are not touched
	Foreign         uint64 // files that are not the journal's
	DamagedOutcomes uint64 // each makes a message pending again

	// Err says why the journal accepts no messages, as far as known; nil: it does.
	Err error
}

// Stats returns the current state.
func (j *Journal) Stats() Stats {
	c := &j.counts
	st := Stats{
		MaxBytes:   j.options.MaxBytes,
		Bytes:      j.used.Load(),
		Refused:    c.refused.Load(),
		OverShare:  c.overShare.Load(),
		Dropped:    c.dropped.Load(),
		Syncs:      c.syncs.Load(),
		SyncErrors: c.syncErrors.Load(),
		SyncTime:   time.Duration(c.syncNanos.Load()),
		SyncLast:   time.Duration(c.syncLast.Load()),
		SyncMax:    time.Duration(c.syncMax.Load()),
		Panics:     c.panics.Load(),

		Damaged:         c.damaged.Load(),
		TornBytes:       c.tornBytes.Load(),
		Missing:         c.missing.Load(),
		Unreadable:      c.unreadable.Load(),
		Foreign:         c.foreign.Load(),
		DamagedOutcomes: c.damagedOutcomes.Load(),
	}
	// A message is accepted before it is settled, so it is never counted as only settled.
	st.Delivered, st.Dead = j.delivered.Load(), j.dead.Load()
	st.Accepted = max(j.accepted.Load(), st.Delivered+st.Dead)
	st.Pending = st.Accepted - st.Delivered - st.Dead

	j.mu.Lock()
	st.Segments = len(j.segments)
	for _, s := range j.segments {
		if s.distrusted.Load() {
			st.Distrusted++
		}
	}
	if j.current.distrusted.Load() && j.next.Load() == nil {
		st.Err = j.failed.Load().err
	}
	j.mu.Unlock()
	if r := j.refused.Load(); r != nil && st.Err == nil {
		st.Err = *r
	}
	if lost := j.lost.Load(); lost != nil {
		st.Err = *lost
	}
	if j.closed.Load() {
		st.Err = ErrClosed
	}
	return st
}
