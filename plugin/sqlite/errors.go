package sqlite

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/mattn/go-sqlite3"
)

// Is reports whether err is SQLite's and has one of the codes.
func Is(err error, codes ...sqlite3.ErrNo) bool {
	e, ok := errors.AsType[sqlite3.Error](err)
	return ok && slices.Contains(codes, e.Code)
}

// IsBusy reports whether another connection's transaction is in the way.
func IsBusy(err error) bool { return Is(err, sqlite3.ErrBusy, sqlite3.ErrLocked) }

// IsFull reports whether the disk has no room.
func IsFull(err error) bool { return Is(err, sqlite3.ErrFull) || errors.Is(err, syscall.ENOSPC) }

// IsDamaged reports whether the file is no database, or a damaged one.
func IsDamaged(err error) bool { return Is(err, sqlite3.ErrNotADB, sqlite3.ErrCorrupt) }

// IsDenied reports whether the file or its directory may not be used as was asked for.
func IsDenied(err error) bool {
	return Is(err, sqlite3.ErrReadonly, sqlite3.ErrPerm, sqlite3.ErrCantOpen) || errors.Is(err, fs.ErrPermission)
}

// A File says in errors which database failed and what to do about it.
type File struct {
	Holds string // what the database holds, with which each error begins: "commands"
	Path  string
	// What to do where the database is locked, damaged, and where it may not be written. "": what applies to most.
	Busy, Damaged, Denied string
}

// Failed returns err with the name of the file before it and, where that can be told, what to do after it.
func (f File) Failed(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok && same(e.Path, f.Path) {
		err = e.Err // the path is not said twice
	}
	advice := f.advice(err)
	if advice != "" {
		advice = "; " + advice
	}
	return fmt.Errorf("%s: %s: %w%s", f.Holds, f.Path, err, advice)
}

func (f File) advice(err error) string {
	switch {
	case IsBusy(err):
		return cmp.Or(f.Busy, "another program has not ended its transaction; try again")
	case IsDamaged(err):
		return cmp.Or(f.Damaged, "move it away, or restore it from a backup")
	case IsFull(err):
		return "make room on the disk"
	case IsDenied(err):
		return cmp.Or(f.Denied, "the broker's user must be able to write it and its directory")
	case Is(err, sqlite3.ErrIoErr):
		return "the file system failed; the system's log says why"
	}
	return ""
}

func same(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}
