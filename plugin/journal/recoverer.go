package journal

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// classify tells collectors from other segments, both ascending, and changes nothing. Logs that cannot be read are among
// the others, those that were dropped in neither. The error is for a log of a later version, or one that may not be read.
func (j *Journal) classify(logs []uint32, d *dropped) (collectors, ordinary []uint32, err error) {
	for _, number := range logs {
		path := filepath.Join(j.options.Dir, logName(number))
		h, err := headerAt(path)
		switch {
		case errors.Is(err, errNewerVersion), errors.Is(err, os.ErrPermission):
			return nil, nil, fmt.Errorf("journal: %s: %w", path, err)
		case err == nil && h.kind == kindCollector && h.number == number && !d.has(number, h.salt):
			collectors = append(collectors, number)
		default:
			ordinary = append(ordinary, number)
		}
	}
	return collectors, ordinary, nil
}

func headerAt(path string) (header, error) {
	f, err := os.Open(path)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	return readLogHeader(f)
}

// A recoverer gives every message to a Recovery, in the order of acceptance: those in collectors, which are read first,
// before those of the segments that were begun after theirs.
type recoverer struct {
	j                    *Journal
	each                 Recovery
	ordinary, collectors []uint32
	last                 uint32 // number of a segment that is or was
	dropped              *dropped
	presence             map[uint32]bool // see present
	moved                []recoveredMove
	unsorted             bool // moved is
	buf                  []byte
	file                 *os.File // of a collector, whose messages are being given
	fileOf               uint32
}

func (j *Journal) newRecoverer(each Recovery, collectors, ordinary []uint32, d *dropped) *recoverer {
	return &recoverer{j: j, each: each, collectors: collectors, ordinary: ordinary, dropped: d, presence: make(map[uint32]bool)}
}

// A recoveredMove is a message in a collector that was not given yet.
type recoveredMove struct {
	origin  Position
	segment *segment
	at      uint32
	outcome Outcome
}

// scan passes over the records of a segment, each with its outcome. Both come by offset.
func (r *recoverer) scan(s *segment, f *os.File, size int64, outcomes []outcome) error {
	j := r.j
	if !s.collector {
		r.giveBefore(s.position(0))
	}
	stray := func(o outcome) {
		s.stray.add(o.offset)
		if o.kind == Delivered {
			s.strayDelivered++
		}
	}
	void := int64(-1) // where copies begin whose segment was not dropped
	result := scanRecords(f, size, s.seed, func(offset uint32, size int, rec *record) bool {
		if rec.from != 0 {
			r.last = max(r.last, rec.from, rec.origin.segment())
			if r.present(rec.from) {
				void = int64(offset)
				return false
			}
		}
		if rec.ids != nil {
			s.idRecords += int64(size)
			r.giveIDs(s, rec.ids)
			return true
		}
		for len(outcomes) > 0 && outcomes[0].offset < offset {
			stray(outcomes[0])
			outcomes = outcomes[1:]
		}
		kind := Pending
		if len(outcomes) > 0 && outcomes[0].offset == offset {
			kind = outcomes[0].kind
			outcomes = outcomes[1:]
		}
		bytes := int64(size) + slotSize
		switch kind {
		case Delivered:
			s.delivered++
		case Dead:
			s.dead++
		}
		if kind != Pending {
			s.settledBytes += int64(size)
			bytes = idsOfSettled
		}
		j.shares.of(rec.Device).bytes.Add(bytes)
		s.accepted.add(offset)
		s.newest = max(s.newest, rec.Timestamp)
		if rec.origin == 0 {
			r.each(s.position(offset), &rec.Accepted, kind)
			return true
		}
		r.moved = append(r.moved, recoveredMove{rec.origin, s, offset, kind})
		r.unsorted = true
		if kind == Pending {
			j.moved.set(rec.origin, s.number, offset)
		}
		return true
	})
	if void >= 0 {
		if err := cutOff(filepath.Join(j.options.Dir, logName(s.number)), void); err != nil {
			return fmt.Errorf("an unused copy of an earlier process could not be cut off: %w", err)
		}
		s.end, result.torn, result.end = void, 0, void
	}
	for _, o := range outcomes {
		stray(o)
	}
	s.outcomes = s.delivered + s.dead + s.stray.count
	j.accepted.Add(s.accepted.count)
	j.delivered.Add(s.delivered)
	j.dead.Add(s.dead)
	r.report(s, &result)
	return nil
}

// present reports whether a segment with this number was not dropped, so that it has its messages itself.
func (r *recoverer) present(number uint32) bool {
	is, known := r.presence[number]
	if !known {
		if slices.Contains(r.ordinary, number) || slices.Contains(r.collectors, number) {
			h, err := headerAt(filepath.Join(r.j.options.Dir, logName(number)))
			is = err == nil && h.number == number && !r.dropped.has(number, h.salt)
		}
		r.presence[number] = is
	}
	return is
}

// cutOff makes a file end, and that durable.
func cutOff(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

// giveIDs gives what is left of settled messages.
func (r *recoverer) giveIDs(s *segment, body []byte) {
	ok := readIDs(body, func(a *Accepted, bytes int) {
		s.newestID = max(s.newestID, a.Timestamp)
		s.chargeIDs(a.Device, int64(bytes))
		r.j.shares.of(a.Device).bytes.Add(int64(bytes))
		r.each(0, a, Settled)
	})
	if !ok {
		r.j.counts.damaged.Add(1)
		r.j.log.Error("a block of ids in the journal is not valid", "file", logName(s.number))
	}
}

// giveBefore gives the messages in collectors that were accepted before a position. Those of collectors are all known
// when the first other segment is read.
func (r *recoverer) giveBefore(pos Position) {
	if r.unsorted {
		slices.SortFunc(r.moved, func(x, y recoveredMove) int { return cmp.Compare(x.origin, y.origin) })
		r.unsorted = false
	}
	n := 0
	var a Accepted
	for ; n < len(r.moved) && r.moved[n].origin < pos; n++ {
		m := r.moved[n]
		if err := r.read(m, &a); err != nil { // a moment ago it could be read
			r.j.counts.damaged.Add(1)
			r.j.log.Error("a message in the journal cannot be read any more", "file", logName(m.segment.number), "error", err)
			continue
		}
		r.each(m.origin, &a, m.outcome)
	}
	r.moved = r.moved[n:]
	if len(r.moved) == 0 {
		r.close()
	}
}

func (r *recoverer) read(m recoveredMove, a *Accepted) (err error) {
	if r.fileOf != m.segment.number {
		r.close()
		if r.file, err = os.Open(filepath.Join(r.j.options.Dir, logName(m.segment.number))); err != nil {
			r.file = nil
			return err
		}
		r.fileOf = m.segment.number
	}
	r.buf, err = readRecord(r.file, m.at, m.segment.seed, a, r.buf)
	return err
}

func (r *recoverer) close() {
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.fileOf = nil, 0
}

// report logs what the pass over a segment found in addition to messages, and cuts off what was torn.
func (r *recoverer) report(s *segment, result *scanned) {
	j := r.j
	path := filepath.Join(j.options.Dir, logName(s.number))
	if result.damaged > 0 {
		j.counts.damaged.Add(uint64(result.damaged))
		j.log.Error("messages in the journal are damaged and lost; the others are not affected",
			"file", path, "damaged", result.damaged, "first_at", result.firstAt, "messages", s.accepted.count)
	}
	if result.unreadable > 0 {
		j.log.Error("the disk did not read a part of the journal", "file", path, "bytes", result.unreadable)
	}
	if result.torn == 0 {
		return
	}
	j.counts.tornBytes.Add(uint64(result.torn))
	j.log.Warn("a segment of the journal ends with an incomplete record, which was not acknowledged or not yet safe; it is cut off",
		"file", path, "at", result.end, "bytes", result.torn)
	if result.unreadable > 0 {
		return // it may be readable another time
	}
	if err := os.Truncate(path, result.end); err != nil {
		j.log.Warn("the incomplete record could not be cut off; it is skipped instead", "error", err)
		return
	}
	s.end = result.end
}
