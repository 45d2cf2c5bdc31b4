package registry

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"

	"golang.org/x/sys/unix"
)

// following opens a registry, ends its goroutine, and returns what the goroutine did every quarter of a second. Each pass
// of the comparison begins at once.
func following(t *testing.T, path string) (r *Registry, log *testkit.Log, poll func()) {
	t.Helper()
	log = new(testkit.Log)
	r, err := open(&source{path: path, busy: openBusy, log: log.Logger()}, log.Logger(), options{compareEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.compare.end()
		_ = r.source.close()
	})
	return r, log, func() { r.poll(t.Context()) }
}

// TestComparisonOfWhatCannotBeOpened has the file's rights taken away while a connection is open, over which the polls
// continue: the comparison reports it, once and with the cure, until it is over.
func TestComparisonOfWhatCannotBeOpened(t *testing.T) {
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	r, log, poll := following(t, path)
	poll()                 // opens the connection
	runtime.LockOSThread() // for good: the thread ends with the test
	away, back := func() error { return os.Chmod(path, 0) }, func() error { return os.Chmod(path, 0o600) }
	if os.Geteuid() == 0 {
		user := func(id int) func() error { return func() error { return unix.Setfsuid(id) } }
		away, back = user(65534), user(0)
	}
	if err := away(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r.compare.next = time.Now()
		poll()
		poll()
	}
	_, err := r.Health()
	if backErr := back(); backErr != nil {
		t.Fatal(backErr)
	}
	if err == nil || !strings.Contains(err.Error(), "must be able to read it") || log.Count("cannot be read") != 1 || log.Count("can be read again") != 0 {
		t.Errorf("%v: %s", err, log)
	}
	r.compare.next = time.Now()
	poll()
	if _, err := r.Health(); err != nil || log.Count("can be read again") != 1 {
		t.Errorf("%v: %s", err, log)
	}
}

// TestComparisonGoesOnAfterALock has another program hold the database between two pages.
func TestComparisonGoesOnAfterALock(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	execute(t, db, `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < 2500)
		INSERT INTO devices SELECT printf('d%04d', i), 'one', 0 FROM n`)
	db.SetMaxOpenConns(1)
	r, log, poll := following(t, path)
	poll()
	p, err := r.source.newPass(t.Context(), r.current.Load())
	if err != nil {
		t.Fatal(err)
	}
	r.compare.pass = p
	if same, done, err := p.page(t.Context(), r.current.Load()); !same || done || err != nil {
		t.Fatal(same, done, err)
	}
	execute(t, db, "BEGIN EXCLUSIVE")
	before := p.last
	if err := r.compareSome(t.Context()); err != nil || r.compare.pass != p || p.last != before {
		t.Error(err, r.compare.pass, p.last)
	}
	execute(t, db, "COMMIT")
	if err := r.compareSome(t.Context()); err != nil || r.compare.pass != nil || log.Count("does not show") != 0 {
		t.Error(err, log)
	}
}

// TestComparisonOfATableThatIsRemade has a table remade between two pages, so that the query of the pass fails: it begins
// again, and nothing is reported.
func TestComparisonOfATableThatIsRemade(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	r, log, poll := following(t, path)
	poll()
	p, err := r.source.newPass(t.Context(), r.current.Load())
	if err != nil {
		t.Fatal(err)
	}
	r.compare.pass = p
	execute(t, db, "CREATE TABLE n(device_id TEXT PRIMARY KEY, shared_secret TEXT, created_at INTEGER) WITHOUT ROWID; INSERT INTO n SELECT * FROM devices; DROP TABLE devices; ALTER TABLE n RENAME TO devices")
	poll()
	if r.compare.pass != nil || !r.compare.again || log.Count("cannot be read") != 0 {
		t.Errorf("%v: %s", r.compare, log)
	}
	poll()
	if _, err := r.Health(); err != nil || r.compare.again || log.Count("cannot be read") != 0 {
		t.Errorf("%v: %s", err, log)
	}
}
