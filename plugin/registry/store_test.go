package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/sqlite"
)

func openStore(tb testing.TB, path string, options ...Option) *Store {
	tb.Helper()
	s, err := OpenStore(path, options...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStoreAndRegistry(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	r, _ := openRegistry(t, path)
	steps := []struct {
		name string
		do   func() error
		err  error
		want string
	}{
		{"add", func() error { return s.Add(t.Context(), "a", Secret("one")) }, nil, "one"},
		{"add again", func() error { return s.Add(t.Context(), "a", Secret("two")) }, ErrExists, "one"},
		{"disable", func() error { return s.SetDisabled(t.Context(), "a", true) }, nil, "disabled one"},
		{"disable again", func() error { return s.SetDisabled(t.Context(), "a", true) }, nil, "disabled one"},
		{"enable", func() error { return s.SetDisabled(t.Context(), "a", false) }, nil, "one"},
		{"enable again", func() error { return s.SetDisabled(t.Context(), "a", false) }, nil, "one"},
		{"disable", func() error { return s.SetDisabled(t.Context(), "a", true) }, nil, "disabled one"},
		{"remove", func() error { return s.Remove(t.Context(), "a") }, nil, "unknown"},
		{"remove again", func() error { return s.Remove(t.Context(), "a") }, ErrNotFound, "unknown"},
		{"disable unknown", func() error { return s.SetDisabled(t.Context(), "a", true) }, ErrNotFound, "unknown"},
		{"add after removal", func() error { return s.Add(t.Context(), "a", Secret("three")) }, nil, "three"},
	}
	for _, step := range steps {
		if err := step.do(); !errors.Is(err, step.err) {
			t.Fatalf("%s: %v, want %v", step.name, err, step.err)
		}
		r.becomes(t, "a", step.want)
	}
}

func TestAddRefuses(t *testing.T) {
	s := openStore(t, newPath(t))
	for _, test := range []struct{ id, secret, want string }{
		{"", "secret-0", `"": not a device id`},
		{"a/b", "secret-1", `"a/b": not a device id`},
		{strings.Repeat("a", 65), "secret-2", "not a device id"},
		{"a", "", `device "a": the secret is empty`},
		{"a", "secret-3\xff", `device "a": the secret is not text`},
		{"a", "secret-4\x00", `device "a": the secret is not text`},
	} {
		err := s.Add(t.Context(), test.id, Secret(test.secret))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want %s", test.id, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret-") {
			t.Errorf("a secret in %v", err)
		}
		if want := strings.Contains(test.want, "not a device id"); errors.Is(err, ErrInvalidID) != want {
			t.Errorf("%q: ErrInvalidID %t", test.id, !want)
		}
	}
	for range s.List(t.Context()) {
		t.Error("something was added")
	}
}

func TestListAndGet(t *testing.T) {
	path := newPath(t)
	db := pythonDatabase(t, path)
	s := openStore(t, path)
	const n = 2500 // more than two pages
	execute(t, db, `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
		INSERT INTO devices SELECT printf('d%04d', i), 'secret', 1727712000 + i FROM n`, n)
	execute(t, db, `INSERT INTO devices VALUES ('e odd', 'secret', 'yesterday'), ('f', 'secret', 12.75),
		(X'66', 'secret', 1), (NULL, 'secret', 1), (X'00FF', 'secret', 1), (NULL, 'secret', 1)`)
	if err := s.SetDisabled(t.Context(), "d0001", true); err != nil {
		t.Fatal(err)
	}
	var got []Entry
	for e, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
		// No lock is held meanwhile, not even within this Store.
		if len(got) == 10 {
			if err := s.SetDisabled(t.Context(), "d2499", true); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(got) != n+6 {
		t.Fatalf("%d entries", len(got))
	}
	// What is no text is shown as the log names it, and can be removed so.
	for i, want := range []Entry{{ID: "X'66'", IDType: "blob"}, {ID: "NULL", IDType: "null"}, {ID: "X'00FF'", IDType: "blob"}, {ID: "NULL", IDType: "null"}} {
		e := got[n+2+i]
		if e.ID != want.ID || e.IDType != want.IDType {
			t.Errorf("%v, want %v", e, want)
		}
		err := s.Remove(t.Context(), e.ID)
		if again := i == 3; errors.Is(err, ErrNotFound) != again { // both at once
			t.Errorf("%s: %v", e.ID, err)
		}
	}
	if n := scalar[int](t, db, "SELECT count(*) FROM devices WHERE typeof(device_id) <> 'text' OR device_id = 'f'"); n != 1 {
		t.Error(n)
	}
	for i, e := range got[:n] {
		want := Entry{ID: fmt.Sprintf("d%04d", i), CreatedAt: time.Unix(1727712000+int64(i), 0), Disabled: i == 1 || i == 2499}
		want.SecretSince = want.CreatedAt
		if !reflect.DeepEqual(e, want) {
			t.Fatalf("%v, want %v", e, want)
		}
	}
	if e := got[n]; e.ID != "e odd" || !e.CreatedAt.IsZero() {
		t.Error(e)
	}
	if e := got[n+1]; e.CreatedAt != time.Unix(12, 0) {
		t.Error(e)
	}
	for range s.List(t.Context()) {
		break // leaves nothing open
	}
	if e, err := s.Get(t.Context(), "d0001"); err != nil || !reflect.DeepEqual(e, got[1]) {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := s.Get(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "e odd"); err != nil {
		t.Errorf("a row that is no device cannot be removed: %v", err)
	}
}

func TestAddSetsTheTime(t *testing.T) {
	s := openStore(t, newPath(t))
	before := time.Now().Truncate(time.Second)
	if err := s.Add(t.Context(), "a", Secret("one")); err != nil {
		t.Fatal(err)
	}
	e, err := s.Get(t.Context(), "a")
	if err != nil || e.CreatedAt.Before(before) || e.CreatedAt.After(time.Now()) {
		t.Errorf("%v, %v", e, err)
	}
}

func TestNewDatabase(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	path := newPath(t)
	s := openStore(t, path)
	if err := s.Add(t.Context(), "a", Secret("one")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 1 {
		t.Errorf("%v next to the database: %v", files, err)
	}
	db := openDatabase(t, path)
	if got := scalar[string](t, db, "PRAGMA journal_mode"); got != "delete" {
		t.Errorf("journal mode %s", got)
	}
	// The Python gateway finds what it knows.
	insert(t, db, "b", "two")
	if got := scalar[string](t, db, "SELECT group_concat(device_id || ' ' || shared_secret ORDER BY device_id) FROM devices"); got != "a one,b two" {
		t.Error(got)
	}
	if got := scalar[string](t, db, "SELECT group_concat(name || ' ' || type) FROM pragma_table_info('devices')"); got != "device_id TEXT,shared_secret TEXT,created_at INTEGER" {
		t.Error(got)
	}
}

func TestRemovedSecretIsOverwritten(t *testing.T) {
	path := newPath(t)
	s := openStore(t, path)
	for _, id := range []string{"a", "b"} {
		if err := s.Add(t.Context(), id, Secret("not to be found any more: "+id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(file), "any more: a") || !strings.Contains(string(file), "any more: b") {
		t.Error("the removed secret is in the file, or the other is not")
	}
}

func TestOpenStoreRefuses(t *testing.T) {
	path := newPath(t)
	execute(t, openDatabase(t, path), "CREATE TABLE something (x)")
	if _, err := OpenStore(path); err == nil || !strings.Contains(err.Error(), "not a device database") {
		t.Error(err)
	}
	path = newPath(t)
	execute(t, pythonDatabase(t, path), "PRAGMA user_version = 4")
	if _, err := OpenStore(path); !errors.Is(err, sqlite.ErrNewer) {
		t.Error(err)
	}
	path = filepath.Join(t.TempDir(), "nowhere", "devices.db")
	if _, err := OpenStore(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestStoreSaysThatTheDatabaseIsLocked(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	writer, err := openDatabase(t, path).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	if _, err := writer.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.Exec("PRAGMA busy_timeout = 10"); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(t.Context(), "a", Secret("one")); err == nil || !strings.Contains(err.Error(), "another program has not ended its transaction") {
		t.Error(err)
	}
	if _, err := writer.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(t.Context(), "a", Secret("one")); err != nil {
		t.Error(err)
	}
}

// A Store waits for other writers rather than fail.
func TestStoresAtOnce(t *testing.T) {
	path := newPath(t)
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			s, err := OpenStore(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = s.Close() }()
			for j := range 25 {
				if err := s.Add(t.Context(), fmt.Sprintf("d-%d-%d", i, j), Secret("secret")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	if n := scalar[int](t, openDatabase(t, path), "SELECT count(*) FROM devices"); n != 100 {
		t.Errorf("%d devices", n)
	}
}

// TestInterruptedChange: after a crash within a commit, who may only read learns what to do, and who may write has the
// devices as they were.
func TestInterruptedChange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "devices.db")
	s, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for i := range 50 {
		if err := s.Add(t.Context(), fmt.Sprintf("sensor_%03d", i), Secret(strings.Repeat("x", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.db.Exec("PRAGMA cache_size = 2"); err != nil { // so that a change reaches the file before its commit
		t.Fatal(err)
	}
	tx, err := s.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("UPDATE devices SET shared_secret = shared_secret || 'y'"); err != nil {
		t.Fatal(err)
	}
	crashed := filepath.Join(dir, "crashed.db")
	for _, end := range []string{"", "-journal"} {
		content, err := os.ReadFile(path + end)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(crashed+end, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := open(&source{path: crashed, readOnly: true, busy: pollBusy, log: slog.New(slog.DiscardHandler)}, slog.New(slog.DiscardHandler), options{})
	if err == nil {
		_ = r.Close()
		t.Fatal("opened")
	}
	if !strings.Contains(err.Error(), `run "bouncerctl device list"`) {
		t.Error(err)
	}
	again, err := OpenStore(crashed)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	secrets, err := again.Secrets(t.Context(), "sensor_000")
	if err != nil || string(secrets[0]) != strings.Repeat("x", 1000) {
		t.Errorf("%d bytes, %v", len(secrets), err)
	}
}
