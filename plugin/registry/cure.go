package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"

	"mosquitto-bouncer/plugin/sqlite"
)

// errOverwritten is the error of a reading during which the file changed: a program writes to it without SQLite's locks.
var errOverwritten = errors.New("another program writes to the file without SQLite's locks, as cp does")

// writeAheadLogged tells whether the file at path is a database in WAL mode (SQLite's file format, section 1.3.3: the
// read version). Only for a database to which this process has no connection: to close the file drops the locks that
// SQLite holds on it.
func writeAheadLogged(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	var header [20]byte
	if _, err := io.ReadFull(f, header[:]); err != nil {
		return false
	}
	return string(header[:16]) == "SQLite format 3\x00" && header[19] == 2
}

// WriteAheadLogged tells whether the database at path is in WAL mode. It is for a program that has no connection to it.
func WriteAheadLogged(path string) bool { return writeAheadLogged(path) }

// WALCure says how a database leaves WAL mode.
func WALCure(path string) string {
	return fmt.Sprintf(`run: sqlite3 %s "PRAGMA journal_mode=DELETE", while no other program has it open`, path)
}

// walText is what is wrong with WAL mode where the directory may not be written.
const walText = "it is in WAL mode, and its directory is not writable, as reading it then requires"

// directoryWritable reports whether this process may make files next to path.
func directoryWritable(path string) bool {
	return unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK) == nil
}

// explain adds to an error of the database at path what it may come from and what to do about it. No connection to the
// database may be open, unless the error is of a lock.
func explain(path string, err error) error {
	return explainIn(path, err, func() bool { return writeAheadLogged(path) })
}

// explainIn is explain where a connection may be open: walled tells whether the database is in WAL mode.
func explainIn(path string, err error, walled func() bool) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; restore it, or create it with \"bouncerctl device add\", or correct the path", err)
	case sqlite.IsBusy(err):
		return fmt.Errorf("%w; another program holds a transaction open: end it (\"fuser -v %s\" names who has the file open)", err, path)
	case sqlite.Is(err, sqlite3.ErrCantOpen, sqlite3.ErrReadonly, sqlite3.ErrPerm, sqlite3.ErrIoErr, sqlite3.ErrProtocol) && walled() && !directoryWritable(path):
		return fmt.Errorf("%w; %s: %s", err, walText, WALCure(path))
	case errors.Is(err, fs.ErrPermission), sqlite.Is(err, sqlite3.ErrCantOpen, sqlite3.ErrPerm):
		return fmt.Errorf("%w; the broker's user must be able to read it and to search its directory", err)
	case sqlite.Is(err, sqlite3.ErrReadonly):
		return fmt.Errorf("%w; a change was interrupted, by a crash for example, and a user who may write must undo it: run \"bouncerctl device list\" as the file's owner", err)
	case sqlite.IsDamaged(err):
		return fmt.Errorf("%w; name another file, or restore this one from a backup", err)
	}
	return err
}
