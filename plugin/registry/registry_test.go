package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"

	"github.com/mattn/go-sqlite3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	within(t, 5*time.Second, "logged", func() bool { return log.Count("added=25000 changed=1 removed=0") == 1 })
	insert(t, db, "a", "three")
	r.becomes(t, "a", "three")
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
		t.Errorf("took %v with another writer", took)
	}
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s after Close", got)
	}
}

func TestPollSurvivesAPanic(t *testing.T) {
	log := new(testkit.Log)
	path := newPath(t)
	db := pythonDatabase(t, path)
	r := &Registry{log: log.Logger(), source: &source{path: path, log: log.Logger()}, skipped: newSkipLog()}
	r.compare = comparison{every: time.Hour, next: time.Now().Add(time.Hour)}
	r.current.Store(newSnapshot())
	insert(t, db, "a", "one")
	known := newDevice([]byte("a"), []byte("one"), false)
	known.Secrets = nil // which no device may have
	r.current.Store(r.current.Load().with([]*Device{known}, nil))
	for range 3 {
		r.poll(t.Context())
	}
	if log.Count("panic: ") != 1 || log.Count("fault=unusable") != 1 {
		t.Error(log)
	}
	insert(t, db, "b", "two") // the panic left no lock behind
	r.current.Store(newSnapshot())
	r.poll(t.Context())
	if r.state("b") != "two" || log.Count("can be read again") != 1 {
		t.Errorf("b is %s: %s", r.state("b"), log)
	}
	if err := r.source.close(); err != nil {
		t.Error(err)
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
	log := new(testkit.Log)
	r := &Registry{log: log.Logger(), source: &source{path: "devices.db"}}
	r.current.Store(newSnapshot())
	busy, gone := sqlite3.Error{Code: sqlite3.ErrBusy}, fmt.Errorf("stat: %w", fs.ErrNotExist)
	for i, step := range []struct {
		err  error
		want string // what is logged
	}{
		{nil, ""},
		{busy, ""}, {busy, ""}, {nil, ""}, // writers come and go
		{busy, ""}, {busy, ""}, {busy, "fault=locked"}, {busy, ""}, {nil, "can be read again"},
		{gone, "fault=missing"}, {gone, ""}, {errors.New("odd"), "fault=unusable"}, {errors.New("other"), ""},
		{nil, "can be read again"}, {nil, ""},
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
