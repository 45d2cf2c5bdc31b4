package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"
)

func connect(t *testing.T, path string, o Options) *sql.Conn {
	t.Helper()
	db, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func made(t *testing.T) (path string, conn *sql.Conn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "a b?%.db") // what a URL has to escape
	if err := Ensure(path); err != nil {
		t.Fatal(err)
	}
	return path, connect(t, path, Options{})
}

func TestFiles(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "db")
	info, err := Create(path, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	at, err := os.Stat(path)
	if err != nil || at.Mode() != 0o640 || !os.SameFile(info, at) {
		t.Errorf("%v, %v", at.Mode(), err)
	}
	if _, err := Create(path, 0o640); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	if err := Ensure(path); err != nil {
		t.Error(err)
	}
	if err := Ensure(path + "2"); err != nil {
		t.Error(err)
	}
	if at, err := os.Stat(path + "2"); err != nil || at.Mode() != 0o600 {
		t.Errorf("%v, %v", at.Mode(), err)
	}
	db, err := Open(path+"3", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.PingContext(t.Context()); !Is(err, sqlite3.ErrCantOpen) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// Each option has the effect that its comment says.
func TestOptions(t *testing.T) {
	path, _ := made(t)
	for _, test := range []struct {
		o     Options
		query string
		want  int64
	}{
		{Options{Busy: 1500 * time.Millisecond}, "PRAGMA busy_timeout", 1500},
		{Options{Synchronous: "FULL"}, "PRAGMA synchronous", 2},
		{Options{Synchronous: "EXTRA"}, "PRAGMA synchronous", 3},
		{Options{QueryOnly: true}, "PRAGMA query_only", 1},
		{Options{SecureDelete: true}, "PRAGMA secure_delete", 1},
		{Options{Journal: "PERSIST"}, "SELECT journal_mode = 'persist' FROM pragma_journal_mode", 1},
		{Options{Journal: "WAL"}, "SELECT journal_mode = 'wal' FROM pragma_journal_mode", 1},
	} {
		if got, err := Number(t.Context(), connect(t, path, test.o), test.query); err != nil || got != test.want {
			t.Errorf("%+v: %d, %v, want %d", test.o, got, err, test.want)
		}
	}
	_, err := connect(t, path, Options{ReadOnly: true}).ExecContext(t.Context(), "CREATE TABLE t (x)")
	if !IsDenied(err) {
		t.Errorf("read only: %v", err)
	}
	db, err := Open(path, Options{Immediate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := Write(t.Context(), connect(t, path, Options{Busy: time.Millisecond}), func() error { return nil }); !IsBusy(err) {
		t.Errorf("immediate: %v", err)
	}
}

func TestTransactions(t *testing.T) {
	path, conn := made(t)
	other := connect(t, path, Options{Busy: time.Millisecond})
	exec := func(conn *sql.Conn, statement string) {
		t.Helper()
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	rows := func() int64 {
		t.Helper()
		n, err := Number(t.Context(), other, "SELECT count(*) FROM t")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	exec(conn, "CREATE TABLE t (x)")
	insert := func() error { exec(conn, "INSERT INTO t VALUES (1)"); return nil }
	if err := Write(t.Context(), conn, insert); err != nil || rows() != 1 {
		t.Errorf("committed: %v, %d rows", err, rows())
	}
	oops := errors.New("oops")
	if err := Write(t.Context(), conn, func() error { _ = insert(); return oops }); !errors.Is(err, oops) || rows() != 1 {
		t.Errorf("failed: %v, %d rows", err, rows())
	}
	func() {
		defer func() { _ = recover() }()
		_ = Write(t.Context(), conn, func() error { _ = insert(); panic("oops") })
	}()
	if rows() != 1 {
		t.Errorf("panicked: %d rows", rows())
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	before := rows()
	if err := Write(canceled, conn, insert); err != nil && rows() != before { // the driver may have been quicker
		t.Errorf("canceled: %v, %d rows", err, rows())
	}
	err := Write(t.Context(), conn, func() error {
		if err := Write(t.Context(), other, func() error { return nil }); !IsBusy(err) {
			t.Errorf("two writers: %v", err)
		}
		return Read(t.Context(), other, func() error { rows(); return nil })
	})
	if err != nil {
		t.Errorf("a reader: %v", err)
	}
	if err := Write(t.Context(), other, func() error { return Probe(t.Context(), other) }); err != nil {
		t.Errorf("something was left locked: %v", err)
	}
}

func TestMigrate(t *testing.T) {
	path, conn := made(t)
	one := Schema{"letters", 0x61, []string{"CREATE TABLE t (x); PRAGMA application_id = 0x61"}}
	two := one
	two.Migrations = append(one.Migrations[:1:1], "INSERT INTO t VALUES (7)")
	bad := two
	bad.Migrations = append(two.Migrations[:2:2], "DELETE FROM t; INSERT INTO nothing VALUES (1)")
	number := func(query string) int64 {
		t.Helper()
		n, err := Number(t.Context(), conn, query)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, s := range []Schema{one, two, two} {
		if err := s.Migrate(t.Context(), conn); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if got := number("PRAGMA user_version"); got != int64(len(s.Migrations)) {
			t.Errorf("%d: version %d", i, got)
		}
	}
	if err := bad.Migrate(t.Context(), conn); err == nil || !strings.Contains(err.Error(), "migration to version 3") {
		t.Errorf("a migration that fails: %v", err)
	}
	if number("SELECT x FROM t") != 7 || number("PRAGMA user_version") != 2 {
		t.Error("a migration that fails leaves something behind")
	}
	if err := one.Migrate(t.Context(), conn); !errors.Is(err, ErrNewer) ||
		err.Error() != "made by a newer version of this program: database version 2, newest known 1; upgrade this program, or use another state_dir" {
		t.Errorf("newer: %v", err)
	}
	other := Schema{"commands", 0x62, two.Migrations}
	if err := other.Migrate(t.Context(), conn); err == nil || err.Error() != "not a database of commands; move it away, or name another state_dir" {
		t.Errorf("of another application: %v", err)
	}
	_, plain := made(t)
	if _, err := plain.ExecContext(t.Context(), "CREATE TABLE x (y)"); err != nil {
		t.Fatal(err)
	}
	if err := one.Migrate(t.Context(), plain); err == nil || !strings.Contains(err.Error(), "not a database of letters") {
		t.Errorf("of no application: %v", err)
	}
	if err := two.Migrate(t.Context(), connect(t, path, Options{ReadOnly: true})); err != nil {
		t.Errorf("a current one needs no writing: %v", err)
	}
}

// Two programs may open a new database at the same time.
func TestMigrateAtOnce(t *testing.T) {
	path, _ := made(t)
	s := Schema{"letters", 0x61, []string{"CREATE TABLE t (x); PRAGMA application_id = 0x61", "INSERT INTO t VALUES (7)"}}
	const programs = 4
	failed := make(chan error, programs)
	for range programs {
		conn := connect(t, path, Options{Busy: 10 * time.Second})
		go func() { failed <- s.Migrate(context.Background(), conn) }()
	}
	for range programs {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if n, err := Number(t.Context(), connect(t, path, Options{}), "SELECT count(*) FROM t"); n != 1 || err != nil {
		t.Errorf("%d rows, %v", n, err)
	}
}

func TestFailed(t *testing.T) {
	plain := File{Holds: "letters", Path: "/s/l.db"}
	own := File{Holds: "letters", Path: "/s/l.db", Busy: "own busy", Denied: "own denied"}
	code := func(n sqlite3.ErrNo) error { return fmt.Errorf("x: %w", sqlite3.Error{Code: n}) }
	for _, test := range []struct {
		file File
		err  error
		want string // how the message ends
	}{
		{plain, code(sqlite3.ErrBusy), "; another program has not ended its transaction; try again"},
		{plain, code(sqlite3.ErrLocked), "; another program has not ended its transaction; try again"},
		{own, code(sqlite3.ErrBusy), "; own busy"},
		{own, code(sqlite3.ErrNotADB), "; move it away, or restore it from a backup"},
		{own, code(sqlite3.ErrCorrupt), "; move it away, or restore it from a backup"},
		{own, code(sqlite3.ErrFull), "; make room on the disk"},
		{own, syscall.ENOSPC, "; make room on the disk"},
		{plain, code(sqlite3.ErrReadonly), "; the broker's user must be able to write it and its directory"},
		{plain, &fs.PathError{Op: "open", Path: "/s/l.db", Err: syscall.EACCES},
			"letters: /s/l.db: permission denied; the broker's user must be able to write it and its directory"},
		{own, &fs.PathError{Op: "open", Path: "/s/other", Err: syscall.EACCES}, "letters: /s/l.db: open /s/other: permission denied; own denied"},
		{own, code(sqlite3.ErrCantOpen), "; own denied"},
		{own, code(sqlite3.ErrIoErr), "; the file system failed; the system's log says why"},
		{own, errors.New("anything"), "letters: /s/l.db: anything"},
	} {
		got := test.file.Failed(test.err).Error()
		if !strings.HasPrefix(got, "letters: /s/l.db: ") || !strings.HasSuffix(got, test.want) {
			t.Errorf("%v: %s, want %s", test.err, got, test.want)
		}
	}
	if err := plain.Failed(code(sqlite3.ErrBusy)); !IsBusy(err) {
		t.Errorf("not wrapped: %v", err)
	}
}
