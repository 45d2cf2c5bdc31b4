package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// DirName is the journal's directory in the state directory.
const DirName = "journal"

// An Inspection is what [Inspect] found besides messages.
type Inspection struct {
	Segments   int
	Bytes      int64 // of their files
	Damaged    int   // messages, or stretches of a log that were messages
	Unreadable int   // segments
}

// Inspect gives every message that is in the journal at dir to each, oldest first, as [Open] does, and changes nothing:
// neither a file nor a lock. Another process may have the journal open; what that does meanwhile may or may not be seen,
// but a message that is given as settled was, and one that was settled when Inspect was called is never given as pending,
// but for those whose outcome is not yet written, which takes some 20 ms. The error is fs.ErrNotExist if there is no
// journal.
func Inspect(dir string, each Recovery) (Inspection, error) {
	l, err := list(dir)
	if err != nil {
		return Inspection{}, err
	}
	d, err := loadDropped(dir)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return Inspection{}, err
	}
	var found Inspection
	for _, number := range l.logs {
		err := found.segment(dir, number, &d, each)
		switch {
		case errors.Is(err, errUnreadable):
			found.Unreadable++
		case errors.Is(err, fs.ErrNotExist): // dropped meanwhile
		case err != nil:
			return found, fmt.Errorf("journal: %w", err)
		}
	}
	return found, nil
}

func (i *Inspection) segment(dir string, number uint32, d *dropped, each Recovery) error {
	f, err := os.Open(filepath.Join(dir, logName(number)))
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
	o, err := os.Open(filepath.Join(dir, outcomesName(number)))
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
	h, err := readHeader(f, kindLog, 0, headerCopy)
	if errors.Is(err, errDamagedHeader) && o != nil && info.Size() > logStart {
		h, err = readHeader(o, kindOutcomes, 0)
	}
	switch {
	case err != nil && !errors.Is(err, errNewerVersion) && info.Size() <= logStart: // being made
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", errUnreadable, err)
	case h.number != number:
		return errUnreadable
	case slices.Contains(d.Segments, droppedName{number, h.salt}):
		return nil
	}
	i.Segments++
	i.Bytes += info.Size() + outcomesSize

	seed := h.salt.seed(number)
	var outcomes []outcome
	if outcomesSize >= headerSize {
		outcomes, _, _ = readOutcomes(o, outcomesSize, seed)
	}
	result := scan(f, info.Size(), seed, func(offset uint32, _ int, a *Accepted) {
		for len(outcomes) > 0 && outcomes[0].offset < offset {
			outcomes = outcomes[1:]
		}
		kind := Pending
		if len(outcomes) > 0 && outcomes[0].offset == offset {
			kind = outcomes[0].kind
		}
		each(Position(uint64(number)<<32|uint64(offset)), a, kind)
	})
	i.Damaged += result.damaged
	return nil
}
