package registry

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// records collects what is logged.
type records struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.Write(p)
}

func (r *records) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.String()
}

func (r *records) count(text string) int { return strings.Count(r.String(), text) }

func (r *records) logger() *slog.Logger { return slog.New(slog.NewTextHandler(r, nil)) }

func openRegistry(tb testing.TB, path string) (*Registry, *records) {
	tb.Helper()
	return openRegistryWith(tb, path, nil)
}

func openRegistryWith(tb testing.TB, path string, key *Key) (*Registry, *records) {
	tb.Helper()
	log := new(records)
	r, err := Open(path, log.logger(), WithKey(key))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r, log
}

// within waits for a condition and fails when it is not met in time.
func within(tb testing.TB, limit time.Duration, what string, met func() bool) {
	tb.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-deadline:
			if !met() {
				tb.Fatalf("not within %v: %s", limit, what)
			}
			return
		}
	}
}

// state describes a device as the registry has it.
func (r *Registry) state(id string) string {
	d := r.Lookup([]byte(id))
	switch {
	case d == nil:
		return "unknown"
	case d.Disabled:
		return "disabled " + string(d.Secrets[0])
	default:
		return string(d.Secrets[0])
	}
}

// becomes waits for a second at most.
func (r *Registry) becomes(tb testing.TB, id, want string) {
	tb.Helper()
	within(tb, time.Second, fmt.Sprintf("%s becomes %q", id, want), func() bool { return r.state(id) == want })
}

func newPath(tb testing.TB) string { return filepath.Join(tb.TempDir(), "devices.db") }

func insert(tb testing.TB, db *sql.DB, id, secret any) {
	tb.Helper()
	execute(tb, db, "INSERT OR REPLACE INTO devices VALUES (?, ?, 1727712000)", id, secret)
}

// scalar returns the one value of a query.
func scalar[T any](tb testing.TB, db *sql.DB, query string) T {
	tb.Helper()
	var v T
	if err := db.QueryRow(query).Scan(&v); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
	return v
}

func TestPythonDatabaseIsUsedAsItIs(t *testing.T) {
	for _, mode := range []string{"delete", "truncate", "persist", "wal"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			path := newPath(t)
			db := pythonDatabase(t, path)
			if got := scalar[string](t, db, "PRAGMA journal_mode = "+mode); got != mode {
				t.Fatal(got)
			}
			insert(t, db, "sensor_001", "secret one")
			insert(t, db, "sensor_002", "secret two")

			r, log := openRegistry(t, path)
			if r.Len() != 2 || r.state("sensor_001") != "secret one" || r.state("sensor_002") != "secret two" {
				t.Fatalf("%d devices, %s, %s", r.Len(), r.state("sensor_001"), r.state("sensor_002"))
			}
			if got := r.state("sensor_003"); got != "unknown" {
				t.Errorf("sensor_003 is %s", got)
			}

			insert(t, db, "sensor_003", "secret three") // without a list of columns
			r.becomes(t, "sensor_003", "secret three")
			execute(t, db, "UPDATE devices SET shared_secret = 'changed' WHERE device_id = 'sensor_001'")
			r.becomes(t, "sensor_001", "changed")
			insert(t, db, "sensor_002", "replaced")
			r.becomes(t, "sensor_002", "replaced")
			execute(t, db, "UPDATE devices SET device_id = 'sensor_004' WHERE device_id = 'sensor_003'")
			r.becomes(t, "sensor_004", "secret three")
			r.becomes(t, "sensor_003", "unknown")
			execute(t, db, "DELETE FROM devices WHERE device_id = 'sensor_001'")
			r.becomes(t, "sensor_001", "unknown")
			execute(t, db, "DELETE FROM devices")
			within(t, time.Second, "all gone", func() bool { return r.Len() == 0 })

			if got := scalar[string](t, db, "PRAGMA journal_mode"); got != mode {
				t.Errorf("journal mode became %s", got)
			}
			if strings.Contains(log.String(), "WARN") {
				t.Error(log)
			}
		})
	}
}

// What the Python gateway writes must be followed whatever its connection's settings.
func TestReplaceWithRecursiveTriggers(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	db.SetMaxOpenConns(1)
	execute(t, db, "PRAGMA recursive_triggers = ON")
	insert(t, db, "a", "one")
	r, _ := openRegistry(t, path)
	insert(t, db, "a", "two")
	r.becomes(t, "a", "two")
	insert(t, db, "b", "three")
	execute(t, db, "UPDATE OR REPLACE devices SET device_id = 'a' WHERE device_id = 'b'")
	r.becomes(t, "a", "three")
	r.becomes(t, "b", "unknown")
}

func TestDisabled(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	r, _ := openRegistry(t, path)
	s := openStore(t, path)

	if err := s.SetDisabled(t.Context(), "a", true); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, "a", "disabled one")
	insert(t, db, "a", "two")
	r.becomes(t, "a", "disabled two")
	execute(t, db, "DELETE FROM devices")
	r.becomes(t, "a", "unknown")
	insert(t, db, "a", "three")
	r.becomes(t, "a", "disabled three")
	if err := s.SetDisabled(t.Context(), "a", false); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, "a", "three")
}

func TestSerialsAndPointers(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	for _, id := range []string{"a", "b", "c"} {
		insert(t, db, id, "secret")
	}
	r, _ := openRegistry(t, path)
	serials := map[uint32]string{}
	first := map[string]*Device{}
	for _, id := range []string{"a", "b", "c"} {
		d := r.Lookup([]byte(id))
		serials[d.Serial] = id
		first[id] = d
	}
	if len(serials) != 3 || serials[0] == "" || serials[1] == "" || serials[2] == "" {
		t.Fatalf("serials are not dense: %v", serials)
	}

	insert(t, db, "a", "changed")
	r.becomes(t, "a", "changed")
	if d := r.Lookup([]byte("a")); d == first["a"] || d.Serial != first["a"].Serial {
		t.Errorf("changed device: same pointer %t, serial %d, was %d", d == first["a"], d.Serial, first["a"].Serial)
	}
	if first["a"].Secrets[0] == nil || string(first["a"].Secrets[0]) != "secret" {
		t.Error("a published device changed")
	}

	execute(t, db, "DELETE FROM devices WHERE device_id = 'b'")
	r.becomes(t, "b", "unknown")
	insert(t, db, "d", "secret")
	r.becomes(t, "d", "secret")
	insert(t, db, "b", "back")
	r.becomes(t, "b", "back")
	if d := r.Lookup([]byte("b")); d.Serial != first["b"].Serial {
		t.Errorf("returned device has serial %d, had %d", d.Serial, first["b"].Serial)
	}
	if d := r.Lookup([]byte("d")); d.Serial != 3 {
		t.Errorf("fourth device has serial %d", d.Serial)
	}

	// A full reload, because of a new file, keeps what did not change.
	other := newPath(t)
	next := pythonDatabase(t, other)
	insert(t, next, "c", "secret")
	insert(t, next, "b", "back again")
	_ = next.Close()
	b := r.Lookup([]byte("b"))
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, "b", "back again")
	r.becomes(t, "a", "unknown")
	if r.Lookup([]byte("c")) != first["c"] {
		t.Error("an unchanged device has a new address after a full reload")
	}
	if d := r.Lookup([]byte("b")); d == b || d.Serial != b.Serial {
		t.Error("a device changed by a full reload has its old address or a new serial")
	}
}

func TestLookupDuringSwaps(t *testing.T) {
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "constant", "constant")
	insert(t, db, "a", "0")
	r, _ := openRegistry(t, path)

	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if d := r.Lookup([]byte("constant")); d == nil || string(d.Secrets[0]) != "constant" {
					t.Error("lost a device that did not change")
					return
				}
				if d := r.Lookup([]byte("a")); d != nil && d.ID != "a" {
					t.Errorf("asked for a, got %s", d.ID)
					return
				}
				_ = r.Len()
			}
		})
	}
	for i := range 4 {
		for j := range 50 {
			insert(t, db, fmt.Sprintf("device-%d-%d", i, j), "secret")
		}
		insert(t, db, "a", fmt.Sprint(i))
		r.becomes(t, "a", fmt.Sprint(i))
		execute(t, db, "DELETE FROM devices WHERE device_id = 'a'")
		r.becomes(t, "a", "unknown")
	}
	close(stop)
	readers.Wait()
	within(t, time.Second, "201 devices", func() bool { return r.Len() == 201 })
}

func TestChangeLogIsBoundedAndAGapIsSeen(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	insert(t, db, "b", "one")
	r, log := openRegistry(t, path)
	kept := r.Lookup([]byte("b"))

	// One transaction, of which the change of a is the first and long pruned at its end.
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	for _, statement := range []string{
		"UPDATE devices SET shared_secret = 'two' WHERE device_id = 'a'",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 25000) INSERT INTO devices SELECT 'new-' || i, 's', 0 FROM n",
	} {
		if _, err := tx.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "reloaded", func() bool { return r.state("a") == "two" })
	if r.Len() != 25002 || r.state("new-25000") != "s" {
		t.Errorf("%d devices, new-25000 is %s", r.Len(), r.state("new-25000"))
	}
	if r.Lookup([]byte("b")) != kept {
		t.Error("an unchanged device has a new address")
	}
	if n := scalar[int](t, db, "SELECT count(*) FROM device_changes"); n < 10_000 || n > 11_000 {
		t.Errorf("the change log has %d entries", n)
	}
	// The line comes after what it tells of.
	within(t, 5*time.Second, "logged", func() bool { return log.count("added=25000 changed=1 removed=0") == 1 })
	insert(t, db, "a", "three")
	r.becomes(t, "a", "three")
}

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

// backup copies a database over another by SQLite's online backup.
func backup(t *testing.T, to, from *sql.DB) {
	t.Helper()
	raw := func(db *sql.DB, do func(*sqlite3.SQLiteConn) error) error {
		conn, err := db.Conn(t.Context())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		return conn.Raw(func(c any) error { return do(c.(*sqlite3.SQLiteConn)) })
	}
	err := raw(to, func(to *sqlite3.SQLiteConn) error {
		return raw(from, func(from *sqlite3.SQLiteConn) error {
			b, err := to.Backup("main", from, "main")
			if err != nil {
				return err
			}
			done, err := b.Step(-1)
			return errors.Join(err, b.Finish(), map[bool]error{false: errors.New("incomplete")}[done])
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A program that makes its table anew takes the triggers with it.
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
	within(t, 2*time.Second, "reported", func() bool { return log.count("fault=unusable") == 1 })
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
	within(t, 2*time.Second, "reported", func() bool { return log.count("fault=missing") == 1 })
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s while the file is missing", got)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the registry made a file: %v", err)
	}

	db = pythonDatabase(t, path)
	insert(t, db, "a", "two")
	r.becomes(t, "a", "two")
	within(t, time.Second, "recovery reported", func() bool { return log.count("followed again") == 1 })

	if err := os.WriteFile(path+".new", []byte("this is not a database, not even nearly; it is a text of some length"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	within(t, 2*time.Second, "reported", func() bool { return log.count("fault=unusable") == 1 })
	if got := r.state("a"); got != "two" {
		t.Errorf("a is %s while the file is no database", got)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, "a", "one")
	within(t, time.Second, "recovery reported", func() bool { return log.count("followed again") == 2 })
	if log.count("fault=") != 2 {
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
	within(t, 5*time.Second, "reported", func() bool { return log.count("fault=locked") == 1 })
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s before the commit", got)
	}
	if _, err := writer.ExecContext(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, "a", "two")
	within(t, time.Second, "recovery reported", func() bool { return log.count("followed again") == 1 })
	if log.count("fault=") != 1 {
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
	log := new(records)
	r, err := open(&source{path: path, busy: 10 * time.Millisecond, log: log.logger()}, log.logger(), options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s", got)
	}
	if log.count("could not be migrated") != 1 {
		t.Error(log)
	}
	for _, statement := range []string{"UPDATE devices SET shared_secret = 'two'", "COMMIT"} {
		if _, err := writer.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	r.becomes(t, "a", "two")
	if got := scalar[int](t, db, "PRAGMA user_version"); got != 2 {
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
			log := new(records)
			r, err := open(&source{path: path, readOnly: true, busy: openBusy, log: log.logger()}, log.logger(), options{})
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
			if got, want := log.count("could not be migrated"), map[bool]int{false: 1, true: 0}[migrated]; got != want {
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
	if r.state("a") != "one" || log.count("could not be migrated") != 1 {
		t.Errorf("a is %s: %s", r.state("a"), log)
	}
}

func TestRowsThatAreNoDevices(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "good", "secret")
	insert(t, db, "no/device", "hush-1")
	insert(t, db, "line\nbreak", "hush-2")
	insert(t, db, "", "hush-3")
	insert(t, db, nil, "hush-4")
	insert(t, db, strings.Repeat("x", 65), "hush-5")
	insert(t, db, []byte("good"), "hush-6")
	insert(t, db, "empty", "")
	insert(t, db, "blob", []byte("hush-7"))
	insert(t, db, 12, 34) // text by the columns' affinity
	execute(t, db, "INSERT INTO devices VALUES ('odd-time', 'secret', 'yesterday')")
	r, log := openRegistry(t, path)
	if r.Len() != 3 || r.state("good") != "secret" || r.state("12") != "34" || r.state("odd-time") != "secret" {
		t.Errorf("%d devices; good is %s, 12 is %s, odd-time is %s", r.Len(), r.state("good"), r.state("12"), r.state("odd-time"))
	}
	if log.count("rows=8 named=8") != 1 {
		t.Error(log)
	}
	for _, want := range []string{
		`id="\"no/device\"" reason="not a device id"`, `id="\"line\\nbreak\"" reason="not a device id"`,
		`id="\"\"" reason="not a device id"`, `id=NULL reason="the id is of type null, not text"`,
		`id=X'676F6F64' reason="the id is of type blob, not text; run: UPDATE`, `id="\"empty\"" reason="no secret"`,
		`id="\"blob\"" reason="the secret is of type blob, not text"`,
	} {
		if log.count(want) != 1 {
			t.Errorf("not once: %s\n%s", want, log)
		}
	}

	execute(t, db, "UPDATE devices SET shared_secret = '' WHERE device_id = 'good'")
	r.becomes(t, "good", "unknown")
	if log.count(`id="\"good\"" reason="no secret"`) != 1 {
		t.Error(log)
	}
	insert(t, db, []byte{0, 0xff}, "hush-8") // while it is followed
	within(t, 2*time.Second, "named", func() bool { return log.count(`id=X'00FF' reason="the id is of type blob`) == 1 })
	insert(t, db, "nothing", "\x00\x00")
	within(t, 2*time.Second, "named", func() bool { return log.count(`id="\"nothing\"" reason="the secret is of NUL bytes alone`) == 1 })
	insert(t, db, "blanks", " \t\u00a0")
	within(t, 2*time.Second, "named", func() bool { return log.count(`id="\"blanks\"" reason="the secret is of white space alone`) == 1 })
	insert(t, db, "good", "again")
	r.becomes(t, "good", "again")
	if log.count("skipped rows") != 5 {
		t.Error(log)
	}
	if strings.Contains(log.String(), "hush") {
		t.Errorf("a secret was logged: %s", log)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		name string
		make func(path string)
		want []string
	}{
		{"missing", func(string) {}, []string{"no such file", "bouncerctl device add"}},
		{"empty", func(path string) { write(t, path, "") }, []string{"no devices table", "bouncerctl device add"}},
		{"other tables", func(path string) {
			execute(t, openDatabase(t, path), "CREATE TABLE something (x)")
		}, []string{"no devices table"}},
		{"other columns", func(path string) {
			execute(t, openDatabase(t, path), "CREATE TABLE devices (name, password)")
		}, []string{"the devices table has no column device_id", "RENAME COLUMN"}},
		{"not a database", func(path string) { write(t, path, strings.Repeat("text ", 1000)) }, []string{"not a database"}},
		{"newer", func(path string) {
			execute(t, pythonDatabase(t, path), "PRAGMA user_version = 3")
		}, []string{"database version 3, newest known 2", "upgrade"}},
		{"directory", func(path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, []string{"not a regular file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(dir, test.name+".db")
			test.make(path)
			r, err := Open(path, slog.New(slog.DiscardHandler))
			if err == nil {
				_ = r.Close()
				t.Fatal("opened")
			}
			for _, want := range append(test.want, "device database: ", path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in %v", want, err)
				}
			}
			if checked := Check(t.Context(), path); checked == nil || test.name != "directory" && checked.Error() != err.Error() {
				t.Errorf("Check says %v, Open %v", checked, err)
			}
			if _, err := os.Stat(path); test.name == "missing" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a file was made: %v", err)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNewerVersionWhileRunning(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	r, log := openRegistry(t, path)
	execute(t, db, "PRAGMA user_version = 3; UPDATE devices SET shared_secret = 'two'")
	within(t, 2*time.Second, "reported", func() bool { return log.count("newest known 2") == 1 })
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s", got)
	}
	execute(t, db, "PRAGMA user_version = 2")
	r.becomes(t, "a", "two")
}

func TestOddPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "50% of?devices#1 &mode=memory.db")
	s := openStore(t, path)
	if err := s.Add(t.Context(), "a", Secret("one")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	r, _ := openRegistry(t, path)
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s", got)
	}
}

func TestClose(t *testing.T) {
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	r, _ := openRegistry(t, path)
	writer, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	if _, err := writer.ExecContext(t.Context(), "BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %v beside a writer", took)
	}
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s after Close", got)
	}
}

func TestPollSurvivesAPanic(t *testing.T) {
	log := new(records)
	path := newPath(t)
	db := pythonDatabase(t, path)
	r := &Registry{log: log.logger(), source: &source{path: path, log: log.logger()}, skipped: newSkipLog()}
	r.compare = comparison{every: time.Hour, next: time.Now().Add(time.Hour)}
	r.current.Store(newSnapshot())
	insert(t, db, "a", "one")
	known := newDevice([]byte("a"), []byte("one"), false)
	known.Secrets = nil // which no device may have
	r.current.Store(r.current.Load().with([]*Device{known}, nil))
	for range 3 {
		r.poll(t.Context())
	}
	if log.count("panic: ") != 1 || log.count("fault=unusable") != 1 {
		t.Error(log)
	}
	insert(t, db, "b", "two") // the panic left no lock behind
	r.current.Store(newSnapshot())
	r.poll(t.Context())
	if r.state("b") != "two" || log.count("followed again") != 1 {
		t.Errorf("b is %s: %s", r.state("b"), log)
	}
	if err := r.source.close(); err != nil {
		t.Error(err)
	}
}

func TestMigrationsAreIdempotentAndAtomic(t *testing.T) {
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	_ = openStore(t, path)
	schema := func() string {
		return scalar[string](t, db, "SELECT group_concat(sql, ';') || (SELECT schema_version FROM pragma_schema_version) || (SELECT group_concat(seq || nonce) FROM device_changes) FROM sqlite_schema")
	}
	before := schema()
	_ = openStore(t, path)
	_, _ = openRegistry(t, path)
	if after := schema(); after != before {
		t.Errorf("changed by opening it again:\n%s\n%s", before, after)
	}

	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	steps := append(migrations(),
		"CREATE TABLE second (x)",
		"CREATE TABLE third (x); INSERT INTO third VALUES (1); INSERT INTO nowhere VALUES (1)")
	err = migrate(t.Context(), conn, steps)
	if err == nil || !strings.Contains(err.Error(), "migration to version 4: no such table: nowhere") {
		t.Fatal(err)
	}
	if got := scalar[string](t, db, "SELECT group_concat(name) || (SELECT user_version FROM pragma_user_version) FROM sqlite_schema WHERE name IN ('second', 'third')"); got != "second3" {
		t.Errorf("after a failed migration to version 4: %s", got)
	}
}

func TestMigrationsAtOnce(t *testing.T) {
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	var openers sync.WaitGroup
	for range 8 {
		openers.Go(func() {
			s, err := OpenStore(path)
			if err != nil {
				t.Error(err)
				return
			}
			_ = s.Close()
		})
	}
	openers.Wait()
	if n := scalar[int](t, db, "SELECT count(*) FROM device_changes"); n != 1 {
		t.Errorf("%d entries in the change log", n)
	}
}

func TestCanceled(t *testing.T) {
	s := openStore(t, newPath(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Add(ctx, "a", Secret("one")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, err := range s.List(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

func TestFaultsAreReportedOnceEach(t *testing.T) {
	log := new(records)
	r := &Registry{log: log.logger(), source: &source{path: "devices.db"}}
	r.current.Store(newSnapshot())
	busy, gone := sqlite3.Error{Code: sqlite3.ErrBusy}, fmt.Errorf("stat: %w", fs.ErrNotExist)
	for i, step := range []struct {
		err  error
		want string // what is logged
	}{
		{nil, ""},
		{busy, ""}, {busy, ""}, {nil, ""}, // writers come and go
		{busy, ""}, {busy, ""}, {busy, "fault=locked"}, {busy, ""}, {nil, "followed again"},
		{gone, "fault=missing"}, {gone, ""}, {errors.New("odd"), "fault=unusable"}, {errors.New("other"), ""},
		{nil, "followed again"}, {nil, ""},
	} {
		before := log.String()
		r.report(step.err)
		got := strings.TrimPrefix(log.String(), before)
		if step.want == "" && got != "" || !strings.Contains(got, step.want) {
			t.Errorf("step %d, %v: logged %q, want %q", i, step.err, got, step.want)
		}
	}
}

// TestReserve has ids that are known from before the start keep one serial, whenever they are registered.
func TestReserve(t *testing.T) {
	path := filepath.Join(t.TempDir(), "devices.db")
	s := openStore(t, path)
	if err := s.Add(t.Context(), "a", Secret("secret of a")); err != nil {
		t.Fatal(err)
	}
	r, _ := openRegistry(t, path)
	reserve := func(id string) uint32 {
		t.Helper()
		serial, err := r.Reserve(id)
		if err != nil {
			t.Fatal(err)
		}
		return serial
	}
	if got, want := reserve("a"), r.Lookup([]byte("a")).Serial; got != want {
		t.Errorf("a registered device: %d, want %d", got, want)
	}
	b := reserve("b")
	if c := reserve("c"); c == b || b == reserve("a") || reserve("b") != b {
		t.Errorf("serials %d, %d and %d", reserve("a"), b, c)
	}
	if r.WasRegistered([]byte("b")) {
		t.Error("b counts as registered before")
	}
	if err := s.Add(t.Context(), "b", Secret("secret of b")); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "b", func() bool { return r.Lookup([]byte("b")) != nil })
	if got := r.Lookup([]byte("b")).Serial; got != b || reserve("b") != b {
		t.Errorf("b has the serial %d, was promised %d", got, b)
	}
}

func triggersOfOurs(tb testing.TB) (n int) {
	tb.Helper()
	own, err := ours()
	if err != nil {
		tb.Fatal(err)
	}
	for _, o := range own {
		if o.kind == "trigger" {
			n++
		}
	}
	return n
}
