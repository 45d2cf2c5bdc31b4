package registry

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"

	"github.com/mattn/go-sqlite3"
)

func openRegistry(tb testing.TB, path string) (*Registry, *testkit.Log) {
	tb.Helper()
	return openRegistryWith(tb, path, nil)
}

func openRegistryWith(tb testing.TB, path string, key *Key) (*Registry, *testkit.Log) {
	tb.Helper()
	log := new(testkit.Log)
	r, err := Open(path, log.Logger(), WithKey(key))
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
	case len(d.Secrets) == 0:
		return "keyed"
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

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
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
