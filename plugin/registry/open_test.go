package registry

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

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
	if log.Count("rows=8 named=8") != 1 {
		t.Error(log)
	}
	for _, want := range []string{
		`id="\"no/device\"" reason="not a device id"`, `id="\"line\\nbreak\"" reason="not a device id"`,
		`id="\"\"" reason="not a device id"`, `id=NULL reason="the id is of type null, not text"`,
		`id=X'676F6F64' reason="the id is of type blob, not text; run: UPDATE`, `id="\"empty\"" reason="no secret"`,
		`id="\"blob\"" reason="the secret is of type blob, not text"`,
	} {
		if log.Count(want) != 1 {
			t.Errorf("not once: %s\n%s", want, log)
		}
	}

	execute(t, db, "UPDATE devices SET shared_secret = '' WHERE device_id = 'good'")
	r.becomes(t, "good", "unknown")
	if log.Count(`id="\"good\"" reason="no secret"`) != 1 {
		t.Error(log)
	}
	insert(t, db, []byte{0, 0xff}, "hush-8") // while it is followed
	within(t, 2*time.Second, "named", func() bool { return log.Count(`id=X'00FF' reason="the id is of type blob`) == 1 })
	insert(t, db, "nothing", "\x00\x00")
	within(t, 2*time.Second, "named", func() bool { return log.Count(`id="\"nothing\"" reason="the secret consists of NUL bytes only`) == 1 })
	insert(t, db, "blanks", " \t\u00a0")
	within(t, 2*time.Second, "named", func() bool { return log.Count(`id="\"blanks\"" reason="the secret consists of white space only`) == 1 })
	insert(t, db, "good", "again")
	r.becomes(t, "good", "again")
	if log.Count("skipped rows") != 5 {
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
			execute(t, pythonDatabase(t, path), "PRAGMA user_version = 4")
		}, []string{"database version 4, newest known 3", "upgrade"}},
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

func TestNewerVersionWhileRunning(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	r, log := openRegistry(t, path)
	execute(t, db, "PRAGMA user_version = 4; UPDATE devices SET shared_secret = 'two'")
	within(t, 2*time.Second, "reported", func() bool { return log.Count("newest known 3") == 1 })
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s", got)
	}
	execute(t, db, "PRAGMA user_version = 3")
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
	if err == nil || !strings.Contains(err.Error(), "migration to version 5: no such table: nowhere") {
		t.Fatal(err)
	}
	if got := scalar[string](t, db, "SELECT group_concat(name) || (SELECT user_version FROM pragma_user_version) FROM sqlite_schema WHERE name IN ('second', 'third')"); got != "second4" {
		t.Errorf("after a failed migration to version 5: %s", got)
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
