package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

// A backup restored in place keeps the file, and may well have a change log as long as the one it replaces.
func TestRestoredInPlace(t *testing.T) {
	t.Parallel()
	path, fork := newPath(t), newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	insert(t, db, "b", "one")
	r, _ := openRegistry(t, path)
	backup(t, openDatabase(t, fork), db)
	forked := openDatabase(t, fork)

	insert(t, db, "a", "two")
	r.becomes(t, "a", "two")
	insert(t, forked, "b", "three")
	insert(t, forked, "c", "four")
	backup(t, db, forked)
	r.becomes(t, "c", "four")
	r.becomes(t, "b", "three")
	r.becomes(t, "a", "one")
}

// A program that makes its table again takes the triggers with it.
func TestTableMadeAnew(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	insert(t, db, "b", "one")
	r, log := openRegistry(t, path)

	execute(t, db, `DROP TABLE devices; CREATE TABLE devices(device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL);
		INSERT INTO devices VALUES ('a', 'two', 0)`)
	// Another program may repair the database before this one looks.
	_ = openStore(t, path)
	r.becomes(t, "a", "two")
	r.becomes(t, "b", "unknown")
	insert(t, db, "a", "three")
	r.becomes(t, "a", "three")

	execute(t, db, "DROP TABLE devices")
	within(t, 2*time.Second, "reported", func() bool { return log.Count("fault=unusable") == 1 })
	if got := r.state("a"); got != "three" {
		t.Errorf("a is %s while the table is missing", got)
	}
	execute(t, db, "CREATE TABLE devices(device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL)")
	insert(t, db, "a", "four")
	r.becomes(t, "a", "four")
	if n := scalar[int](t, db, "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'"); n != triggersOfOurs(t) {
		t.Errorf("%d triggers", n)
	}
}

func TestFileReplacedOrRemoved(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	_ = db.Close()
	r, log := openRegistry(t, path)

	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	within(t, 2*time.Second, "reported", func() bool { return log.Count("fault=missing") == 1 })
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s while the file is missing", got)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the registry made a file: %v", err)
	}

	db = pythonDatabase(t, path)
	insert(t, db, "a", "two")
	r.becomes(t, "a", "two")
	within(t, time.Second, "recovery reported", func() bool { return log.Count("can be read again") == 1 })

	if err := os.WriteFile(path+".new", []byte("this is not a database, not even nearly; it is a text of some length"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	within(t, 2*time.Second, "reported", func() bool { return log.Count("fault=unusable") == 1 })
	if got := r.state("a"); got != "two" {
		t.Errorf("a is %s while the file is no database", got)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, "a", "one")
	within(t, time.Second, "recovery reported", func() bool { return log.Count("can be read again") == 2 })
	if log.Count("fault=") != 2 {
		t.Error(log)
	}
}

func TestLongWriter(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	r, log := openRegistry(t, path)

	writer, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	for _, statement := range []string{"BEGIN EXCLUSIVE", "UPDATE devices SET shared_secret = 'two'"} {
		if _, err := writer.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	within(t, 5*time.Second, "reported", func() bool { return log.Count("fault=locked") == 1 })
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s before the commit", got)
	}
	if _, err := writer.ExecContext(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, "a", "two")
	within(t, time.Second, "recovery reported", func() bool { return log.Count("can be read again") == 1 })
	if log.Count("fault=") != 1 {
		t.Error(log)
	}
}

// A writer that only reserves the database does not keep anyone from reading it.
func TestOpenBesideAWriter(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	writer, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	if _, err := writer.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	log := new(testkit.Log)
	r, err := open(&source{path: path, busy: 10 * time.Millisecond, log: log.Logger()}, log.Logger(), options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s", got)
	}
	if log.Count("could not be migrated") != 1 {
		t.Error(log)
	}
	for _, statement := range []string{"UPDATE devices SET shared_secret = 'two'", "COMMIT"} {
		if _, err := writer.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	r.becomes(t, "a", "two")
	if got := scalar[int](t, db, "PRAGMA user_version"); got != 3 {
		t.Errorf("version %d once the writer was done", got)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	for _, migrated := range []bool{false, true} {
		t.Run(fmt.Sprintf("migrated=%t", migrated), func(t *testing.T) {
			path := newPath(t)
			db := pythonDatabase(t, path)
			insert(t, db, "a", "one")
			insert(t, db, "b", "one")
			version := 0
			if migrated {
				s := openStore(t, path)
				if err := s.SetDisabled(t.Context(), "b", true); err != nil {
					t.Fatal(err)
				}
				version = len(migrations())
			}
			log := new(testkit.Log)
			r, err := open(&source{path: path, readOnly: true, busy: openBusy, log: log.Logger()}, log.Logger(), options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			insert(t, db, "a", "two")
			r.becomes(t, "a", "two")
			execute(t, db, "DELETE FROM devices WHERE device_id = 'a'")
			r.becomes(t, "a", "unknown")
			if want := map[bool]string{false: "one", true: "disabled one"}[migrated]; r.state("b") != want {
				t.Errorf("b is %s, want %s", r.state("b"), want)
			}
			if got := scalar[int](t, db, "PRAGMA user_version"); got != version {
				t.Errorf("version became %d", got)
			}
			if got, want := log.Count("could not be migrated"), map[bool]int{false: 1, true: 0}[migrated]; got != want {
				t.Errorf("%d warnings, want %d: %s", got, want, log)
			}
			if !migrated {
				_ = openStore(t, path) // what the warning advises
				insert(t, db, "a", "three")
				r.becomes(t, "a", "three")
			}
		})
	}
}

// The permissions of the file decide, without a word in the configuration.
func TestFileWithoutWritePermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write any file")
	}
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	_ = db.Close()
	if err := os.Chmod(path, 0o440); err != nil {
		t.Fatal(err)
	}
	r, log := openRegistry(t, path)
	if r.state("a") != "one" || log.Count("could not be migrated") != 1 {
		t.Errorf("a is %s: %s", r.state("a"), log)
	}
}
