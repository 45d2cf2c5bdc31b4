package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// DirName is the journal's directory in the state directory.
const DirName = "journal"

// An Inspection is what [Inspect] found in addition to messages.
type Inspection struct {
	Segments   int
	Bytes      int64 // of their files
	Damaged    int   // messages, or stretches of a log that were messages
	Unreadable int   // segments
}

// Inspect gives every message that is in the journal at dir to each, as [Open] does, but those in collectors last, and
// changes nothing: neither a file nor a lock. Another process may have the journal open; what that does meanwhile may or
// may not be seen, but a message that is given as settled was, and one that was settled when Inspect was called is never
// given as pending, but for those whose outcome is not yet written, which takes some 20 ms. The error is fs.ErrNotExist if
// there is no journal.
func Inspect(dir string, each Recovery) (Inspection, error) {
	l, err := list(dir)
	if err != nil {
		return Inspection{}, err
	}
	i := inspector{dir: dir, each: each, seen: make(map[uint32]bool), given: make(map[Position]bool)}
	if i.dropped, err = loadDropped(dir); err != nil && !errors.Is(err, ErrDamaged) {
		return Inspection{}, err
	}
	// Collectors come last: what is moved meanwhile is in one of them then.
	for _, collectors := range []bool{false, true} {
		for again := true; again; again = again && collectors {
			if again, err = i.pass(l.logs, collectors); err != nil {
				return i.found, err
			}
			if again {
				if l, err = list(dir); err != nil {
					return i.found, err
				}
			}
		}
	}
	return i.found, nil
}

type inspector struct {
	dir     string
	each    Recovery
	found   Inspection
	dropped dropped
	seen    map[uint32]bool   // segments that were read
	given   map[Position]bool // messages in collectors that were
}

// pass reads all logs of one of the two kinds that were not read before, and reports whether one has vanished.
func (i *inspector) pass(logs []uint32, collectors bool) (vanished bool, err error) {
	for _, number := range logs {
		if i.seen[number] {
			continue
		}
		err := i.segment(number, collectors)
		switch {
		case errors.Is(err, errUnreadable):
			i.seen[number] = true
			i.found.Unreadable++
		case errors.Is(err, fs.ErrNotExist): // dropped meanwhile
			vanished = true
		case err != nil:
			return false, fmt.Errorf("journal: %w", err)
		}
	}
	return vanished, nil
}

func (i *inspector) segment(number uint32, collectors bool) error {
	f, err := os.Open(filepath.Join(i.dir, logName(number)))
	if err != nil {
		return err
	}
	defer f.Close()
	// The size is taken before the outcomes are read: of the messages up to there none is missed that was settled.
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var outcomesSize int64
	o, err := os.Open(filepath.Join(i.dir, outcomesName(number)))
	switch {
	case err == nil:
		defer o.Close()
		info, err := o.Stat()
		if err != nil {
			return err
		}
		outcomesSize = info.Size()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	h, err := readLogHeader(f)
	if errors.Is(err, errDamagedHeader) && o != nil && info.Size() > logStart {
		h, err = readHeader(o, kindOutcomes, 0)
	}
	switch {
	case err != nil && !errors.Is(err, errNewerVersion) && info.Size() <= logStart: // being made
		return nil
	case err == nil && (h.kind == kindCollector) != collectors:
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", errUnreadable, err)
	case h.number != number:
		return errUnreadable
	case i.dropped.has(number, h.salt):
		return nil
	}
	i.seen[number] = true
	i.found.Segments++
	i.found.Bytes += info.Size() + outcomesSize

	seed := h.salt.seed(number)
	var outcomes []outcome
	if outcomesSize >= headerSize {
		outcomes, _, _ = readOutcomes(o, outcomesSize, seed)
	}
	result := scanRecords(f, info.Size(), seed, func(offset uint32, _ int, r *record) bool {
		if r.ids != nil {
			readIDs(r.ids, func(a *Accepted, _ int) { i.each(0, a, Settled) })
			return true
		}
		for len(outcomes) > 0 && outcomes[0].offset < offset {
			outcomes = outcomes[1:]
		}
		kind := Pending
		if len(outcomes) > 0 && outcomes[0].offset == offset {
			kind = outcomes[0].kind
		}
		pos := Position(uint64(number)<<32 | uint64(offset))
		if r.from != 0 {
			pos = r.origin
			if i.given[pos] || i.seen[pos.segment()] || i.present(r.from) {
				return true
			}
			i.given[pos] = true
		}
		i.each(pos, &r.Accepted, kind)
		return true
	})
	i.found.Damaged += result.damaged
	return nil
}

// present reports whether a segment has its messages itself.
func (i *inspector) present(number uint32) bool {
	h, err := headerAt(filepath.Join(i.dir, logName(number)))
	return err == nil && !i.dropped.has(number, h.salt)
}
