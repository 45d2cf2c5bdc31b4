package deadletter

import (
	"bytes"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"mosquitto-bouncer/plugin/sqlite"
)

// A database that is moved away or replaced is not written to any more.
func TestReplacedFile(t *testing.T) {
	path := newPath(t)
	s := openStore(t, path)
	add(t, s, letter(1))
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	add(t, s, letter(2))
	if got := list(t, operator(t, path), Filter{}, 0); len(got) != 1 || got[0].Timestamp != epoch.Unix()+2 {
		t.Errorf("%+v", got)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	add(t, s, letter(3))
	if got := totals(t, operator(t, path)); got.Letters != 2 {
		t.Errorf("%+v", got)
	}

	o := operator(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Totals(t.Context()); !errors.Is(err, fs.ErrNotExist) ||
		err.Error() != "dead letters: "+path+": no such file or directory" {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := newPath(t)
	if _, err := OpenExisting(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("OpenExisting made it")
	}
	_ = openStore(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if got := totals(t, operator(t, path)); got != (Totals{}) {
		t.Errorf("%+v", got)
	}
	odd := filepath.Join(t.TempDir(), "50% of?dead#1 &mode=memory.db")
	add(t, openStore(t, odd), letter(1))
	if got := totals(t, operator(t, odd)); got.Letters != 1 {
		t.Errorf("%+v", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		name string
		make func(path string)
		want string
	}{
		{"other tables", func(path string) { execute(t, path, "CREATE TABLE devices (x)") },
			"not a database of dead letters; move it away, or name another state_dir"},
		{"other application", func(path string) { execute(t, path, "PRAGMA application_id = 7") },
			"not a database of dead letters; move it away, or name another state_dir"},
		{"newer", func(path string) {
			_ = openStore(t, path)
			execute(t, path, "PRAGMA user_version = 3")
		}, "made by a newer version of this program: database version 3, newest known 2; upgrade this program, or use another state_dir"},
		{"text", func(path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("text "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "file is not a database; move it away, or restore it from a backup"},
		{"missing/directory", func(string) {}, "no such file or directory"},
	} {
		path := filepath.Join(dir, test.name)
		test.make(path)
		s, err := Open(path, Limits{})
		if err == nil {
			_ = s.Close()
		}
		if want := "dead letters: " + path + ": " + test.want; err == nil || err.Error() != want {
			t.Errorf("%s: got  %v\nwant %s", test.name, err, want)
		}
	}
}

func TestMigrationsAtOnce(t *testing.T) {
	path := newPath(t)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var openers sync.WaitGroup
	for range 8 {
		openers.Go(func() {
			s, err := Open(path, Limits{})
			if err != nil {
				t.Error(err)
				return
			}
			_ = s.Close()
		})
	}
	openers.Wait()
	add(t, openStore(t, path), letter(1))
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	s := openStore(t, newPath(t))
	err := s.use(t.Context(), func(conn *sql.Conn) error {
		next := schema()
		next.Migrations = append(next.Migrations, "CREATE TABLE second (x); INSERT INTO nowhere VALUES (1)")
		err := next.Migrate(t.Context(), conn)
		if err == nil || err.Error() != "migration to version 3: no such table: nowhere" {
			t.Errorf("%v", err)
		}
		n, err := sqlite.Number(t.Context(), conn, "SELECT count(*) + (SELECT user_version FROM pragma_user_version) FROM sqlite_schema WHERE name = 'second'")
		if n != 2 {
			t.Errorf("%d", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestClosed(t *testing.T) {
	s := openStore(t, newPath(t))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Add(t.Context(), letter(1)); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Totals(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// An operator who may read may list.
func TestWithoutWritePermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write any file")
	}
	path := newPath(t)
	add(t, openStore(t, path), letter(1))
	if err := os.Chmod(path, 0o440); err != nil {
		t.Fatal(err)
	}
	o := operator(t, path)
	if got := totals(t, o); got.Letters != 1 {
		t.Errorf("%+v", got)
	}
	_, err := o.Drop(t.Context(), Filter{})
	if err == nil || !strings.HasSuffix(err.Error(), "readonly database; run this as the broker's user or as root, who can write it and its directory") {
		t.Error(err)
	}
}
