package registry

import (
	"database/sql"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

const tableText = "(device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL)"

// TestWaysToChange changes the database in every way that a program may, and wants what it says then in force: a with
// another secret, b unknown, c new. Afterwards an ordinary change must still be.
func TestWaysToChange(t *testing.T) {
	t.Parallel()
	const change = "UPDATE devices SET shared_secret = 'two' WHERE device_id = 'a'; DELETE FROM devices WHERE device_id = 'b'; INSERT INTO devices VALUES ('c', 'one', 1);"
	statements := func(text string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db := openDatabase(t, path)
			db.SetMaxOpenConns(1)
			execute(t, db, text)
			_ = db.Close()
		}
	}
	// another is a database made by another program, with the same number of changes.
	another := func(t *testing.T) string {
		path := newPath(t)
		db := pythonDatabase(t, path)
		execute(t, db, "INSERT INTO devices VALUES ('a', 'two', 1), ('c', 'one', 1)")
		_ = db.Close()
		return path
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, do := range map[string]func(t *testing.T, path string){
		"renamed and copied": func(t *testing.T, path string) {
			statements("ALTER TABLE devices RENAME TO devices_old; CREATE TABLE devices"+tableText+"; INSERT INTO devices SELECT * FROM devices_old;")(t, path)
			statements(change)(t, path)
		},
		"renamed and copied in one transaction": statements("BEGIN; ALTER TABLE devices RENAME TO devices_old; CREATE TABLE devices" + tableText + "; INSERT INTO devices SELECT * FROM devices_old; " + change + " COMMIT;"),
		"copied, dropped, renamed back":         statements("CREATE TABLE n" + tableText + "; INSERT INTO n SELECT * FROM devices; DROP TABLE devices; ALTER TABLE n RENAME TO devices; " + change),
		"legacy rename":                         statements("PRAGMA legacy_alter_table = ON; ALTER TABLE devices RENAME TO devices_old; CREATE TABLE devices" + tableText + "; INSERT INTO devices SELECT * FROM devices_old; " + change),
		"a table without a key":                 statements("CREATE TABLE n AS SELECT * FROM devices; DROP TABLE devices; ALTER TABLE n RENAME TO devices; " + change),
		"a table without rowid":                 statements("DROP TABLE devices; CREATE TABLE devices(device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL) WITHOUT ROWID; INSERT INTO devices VALUES ('a', 'two', 1), ('c', 'one', 1)"),
		"another letter case":                   statements("ALTER TABLE devices RENAME TO x; CREATE TABLE DEVICES(Device_ID TEXT PRIMARY KEY, Shared_Secret TEXT NOT NULL, Created_At INTEGER NOT NULL); INSERT INTO DEVICES SELECT * FROM x; DROP TABLE x; " + change),
		"ids without letter case":               statements("DROP TABLE devices; CREATE TABLE devices(device_id TEXT PRIMARY KEY COLLATE NOCASE, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL); INSERT INTO devices VALUES ('A', 'two', 1), ('c', 'one', 1); UPDATE devices SET device_id = 'a' WHERE device_id = 'A'"),
		"a view":                                statements("ALTER TABLE devices RENAME TO x; CREATE VIEW devices AS SELECT * FROM x; UPDATE x SET shared_secret = 'two' WHERE device_id = 'a'; DELETE FROM x WHERE device_id = 'b'; INSERT INTO x VALUES ('c', 'one', 1)"),
		"other triggers of the same names":      statements("DROP TRIGGER devices_insert; DROP TRIGGER devices_update; DROP TRIGGER devices_delete; CREATE TRIGGER devices_insert AFTER INSERT ON devices BEGIN SELECT 1; END; CREATE TRIGGER devices_update AFTER UPDATE ON devices BEGIN SELECT 1; END; CREATE TRIGGER devices_delete AFTER DELETE ON devices BEGIN SELECT 1; END; " + change),
		"without created_at":                    statements(change + "CREATE TABLE n(device_id TEXT PRIMARY KEY, shared_secret TEXT); INSERT INTO n SELECT device_id, shared_secret FROM devices; DROP TABLE devices; ALTER TABLE n RENAME TO devices"),
		"recursive triggers":                    statements("PRAGMA recursive_triggers = ON; INSERT OR REPLACE INTO devices VALUES ('a', 'two', 1), ('c', 'one', 1); UPDATE OR REPLACE devices SET device_id = 'a', shared_secret = 'two' WHERE device_id = 'b'"),
		"the change log emptied":                statements(change + "DELETE FROM device_changes"),
		"the change log renamed":                statements("ALTER TABLE device_changes RENAME TO y; " + change),
		"WAL": func(t *testing.T, path string) {
			statements("PRAGMA journal_mode = WAL; "+change)(t, path)
		},
		"WAL and back": func(t *testing.T, path string) {
			statements("PRAGMA journal_mode = WAL; UPDATE devices SET shared_secret = 'x'")(t, path)
			statements("PRAGMA busy_timeout = 5000; "+change)(t, path)
		},
		"triggers that were away for the change": statements(withoutTriggers(t, change)),
		"copied over": func(t *testing.T, path string) {
			out, err := exec.Command("cp", another(t), path).CombinedOutput()
			if err != nil {
				t.Fatal(err, string(out))
			}
		},
		"copied over, with the time of before": func(t *testing.T, path string) {
			info, err := os.Stat(path)
			must(t, err)
			content, err := os.ReadFile(another(t))
			must(t, err)
			must(t, os.WriteFile(path, content, 0o600))
			must(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
		"moved over": func(t *testing.T, path string) { must(t, os.Rename(another(t), path)) },
		"removed and made": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Rename(another(t), path))
		},
		"away and back": func(t *testing.T, path string) {
			must(t, os.Rename(path, path+".away"))
			statements(change)(t, path+".away")
			must(t, os.Rename(path+".away", path))
		},
		"the directory replaced": func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			must(t, os.Rename(dir, dir+".old"))
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.Rename(another(t), path))
		},
		"a pipe in its place": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, syscall.Mkfifo(path, 0o600))
			time.Sleep(2 * pollInterval) // a poll looks at it meanwhile, and must not wait for who writes to it
			must(t, os.Rename(another(t), path))
		},
		"beside a view of a table that is away":           statements("CREATE VIEW v AS SELECT * FROM away; " + change),
		"beside a view with a function that is not known": statements("PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES ('view', 'v', 'v', 0, 'CREATE VIEW v AS SELECT unknown(device_id) FROM devices'); " + change),
		"beside a table of a module that is not built in": statements("PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES ('table', 'f', 'f', 0, 'CREATE VIRTUAL TABLE f USING unknown(x)'); " + change),
		"a secret that is generated":                      statements("CREATE TABLE n(device_id TEXT PRIMARY KEY, raw TEXT, shared_secret TEXT AS (raw), created_at INTEGER); INSERT INTO n (device_id, raw) VALUES ('a', 'one'), ('b', 'one'); DROP TABLE devices; ALTER TABLE n RENAME COLUMN raw TO x; ALTER TABLE n RENAME TO devices; UPDATE devices SET x = 'two' WHERE device_id = 'a'; DELETE FROM devices WHERE device_id = 'b'; INSERT INTO devices (device_id, x) VALUES ('c', 'one')"),
		"by the rules of other tables":                    statements("CREATE TABLE owners(id TEXT PRIMARY KEY); INSERT INTO owners VALUES ('a'), ('b'), ('d'); CREATE TABLE n(device_id TEXT PRIMARY KEY REFERENCES owners ON DELETE CASCADE ON UPDATE CASCADE, shared_secret TEXT, created_at INTEGER) STRICT; INSERT INTO n SELECT * FROM devices; INSERT INTO n VALUES ('d', 'one', 1); DROP TABLE devices; ALTER TABLE n RENAME TO devices; PRAGMA foreign_keys = ON; DELETE FROM owners WHERE id = 'b'; UPDATE owners SET id = 'c' WHERE id = 'd'; INSERT INTO devices VALUES ('a', 'two', 1) ON CONFLICT DO UPDATE SET shared_secret = excluded.shared_secret"),
		"another version, and none":                       statements("PRAGMA user_version = 0; " + change),
		"other pages":                                     statements(change + "PRAGMA page_size = 16384; PRAGMA auto_vacuum = FULL; VACUUM"),
		"a symbolic link": func(t *testing.T, path string) {
			must(t, os.Symlink(another(t), path+".link"))
			must(t, os.Rename(path+".link", path))
		},
		"a vacuum": statements(change + "VACUUM"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "registry")
			must(t, os.Mkdir(dir, 0o700))
			path := filepath.Join(dir, "devices.db")
			db := pythonDatabase(t, path)
			execute(t, db, "INSERT INTO devices VALUES ('a', 'one', 1), ('b', 'one', 1)")
			_ = db.Close()
			r, log := openRegistry(t, path)
			do(t, path)
			within(t, 5*time.Second, "in force", func() bool {
				return r.state("a") == "two" && r.state("b") == "unknown" && r.state("c") == "one" && r.Len() == 2
			})
			table, column := "devices", "shared_secret"
			switch name {
			case "a view":
				table = "x"
			case "a secret that is generated":
				column = "x"
			}
			statements("UPDATE "+table+" SET "+column+" = 'three' WHERE device_id = 'a'")(t, path)
			within(t, 2*time.Second, "a change after it in force", func() bool { return r.state("a") == "three" })
			if _, err := r.Health(); err != nil {
				t.Error(err)
			}
			if name == "triggers that were away for the change" && log.Count("was changed in a way that its change log does not show") != 1 {
				t.Error(log)
			}
		})
	}
}

// withoutTriggers is a change during which the triggers of this package are not there.
func withoutTriggers(t *testing.T, change string) string {
	own, err := ours()
	if err != nil {
		t.Fatal(err)
	}
	before, after := "BEGIN;", ""
	for name, o := range own {
		if o.kind == "trigger" {
			before += "DROP TRIGGER " + name + ";"
			after += o.sql + ";"
		}
	}
	return before + change + after + "COMMIT;"
}

// TestComparisonFindsWhatNothingElseShows has what is in force differ from the database in each way there is, with no
// trace of a change.
func TestComparisonFindsWhatNothingElseShows(t *testing.T) {
	t.Parallel()
	for _, table := range []string{tableText, tableText + " WITHOUT ROWID", "(device_id TEXT, shared_secret TEXT, created_at INTEGER)"} {
		path := newPath(t)
		db := openDatabase(t, path)
		execute(t, db, "CREATE TABLE devices"+table)
		execute(t, db, `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < 2500)
			INSERT INTO devices SELECT printf('d%04d', i), 'one', 0 FROM n`)
		log := new(testkit.Log)
		from := &source{path: path, busy: openBusy, log: log.Logger()}
		r, err := open(from, log.Logger(), options{compareEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil { // from here on this test does what the goroutine did
			t.Fatal(err)
		}
		pass := func() {
			r.compare.next = time.Time{}
			for range 100 {
				r.poll(t.Context())
				if r.compare.pass == nil && !r.compare.next.IsZero() {
					return
				}
			}
			t.Fatal("no end")
		}
		r.poll(t.Context())
		pass()
		if log.Count("does not show") != 0 {
			t.Fatal(log)
		}
		all := r.current.Load()
		with := func(put, drop []*Device) { r.current.Store(all.with(put, drop)) }
		secret := newDevice([]byte("d2300"), []byte("two"), false)
		secret.Serial = r.Lookup([]byte("d2300")).Serial
		extra := newDevice([]byte("gone"), []byte("one"), false)
		extra.Serial = all.serials
		off := newDevice([]byte("d0001"), []byte("one"), true)
		off.Serial = r.Lookup([]byte("d0001")).Serial
		for i, wrong := range []func(){
			func() { with([]*Device{secret}, nil) },
			func() { with(nil, []*Device{r.Lookup([]byte("d1500"))}) },
			func() { with([]*Device{extra}, nil) },
			func() { with([]*Device{off}, nil) },
		} {
			wrong()
			pass()
			if log.Count("does not show") != i+1 || r.Len() != 2500 || r.state("d2300") != "one" || r.state("d1500") != "one" ||
				r.state("gone") != "unknown" || r.state("d0001") != "one" {
				t.Errorf("%s, %d: %s", table, i, log)
			}
			r.current.Store(all)
			r.serials = all.serials + 1
		}
		r.compare.end()
		_ = r.source.close()
	}
}

// TestReplacedForAnotherColumn has a device's row give way to another device's, by a column that is not the id: SQLite
// fires no trigger for that.
func TestReplacedForAnotherColumn(t *testing.T) {
	t.Parallel()
	for name, table := range map[string]string{
		"a number":        "(number INTEGER PRIMARY KEY, device_id TEXT NOT NULL UNIQUE, shared_secret TEXT NOT NULL)",
		"a unique column": "(device_id TEXT PRIMARY KEY, number INTEGER UNIQUE, shared_secret TEXT NOT NULL)",
	} {
		path := newPath(t)
		db := openDatabase(t, path)
		execute(t, db, "CREATE TABLE devices "+table+"; INSERT INTO devices (number, device_id, shared_secret) VALUES (1, 'a', 'one')")
		r, _ := openRegistry(t, path)
		execute(t, db, "REPLACE INTO devices (number, device_id, shared_secret) VALUES (1, 'b', 'one')")
		r.becomes(t, "b", "one")
		within(t, 5*time.Second, name+": the other one removed", func() bool { return r.state("a") == "unknown" })
	}
}

// TestUTF16 reads and rotates the secrets of a database in SQLite's other encodings.
func TestUTF16(t *testing.T) {
	t.Parallel()
	for _, encoding := range []string{"UTF-16le", "UTF-16be"} {
		path := newPath(t)
		db := openDatabase(t, path)
		db.SetMaxOpenConns(1)
		execute(t, db, "PRAGMA encoding = '"+encoding+"'; CREATE TABLE devices"+tableText+"; INSERT INTO devices VALUES ('a', 'öne', 1)")
		r, _ := openRegistry(t, path)
		s, err := OpenStore(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Rotate(t.Context(), "a", []byte("two"), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		r.becomes(t, "a", "two")
		if d := r.Lookup([]byte("a")); len(d.Secrets) != 2 || string(d.Secrets[1]) != "öne" {
			t.Errorf("%s: %d secrets, the last of %d bytes", encoding, len(d.Secrets), len(d.Secrets[len(d.Secrets)-1]))
		}
	}
}

// TestTwoRowsOfOneID keeps to the first row, whenever it looks, and names the other.
func TestTwoRowsOfOneID(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := openDatabase(t, path)
	execute(t, db, "CREATE TABLE devices (device_id TEXT, shared_secret TEXT, created_at INTEGER); INSERT INTO devices VALUES ('a', 'one', 1), ('a', 'two', 1)")
	r, log := openRegistry(t, path)
	for i := range 3 {
		if r.state("a") != "one" {
			t.Fatalf("%d: %s", i, r.state("a"))
		}
		execute(t, db, "INSERT INTO devices VALUES (?, 'x', 1)", string(rune('b'+i)))
		r.becomes(t, string(rune('b'+i)), "x")
	}
	if log.Count("the id is there twice") != 1 {
		t.Error(log)
	}
}

// TestWhatCannotBeUsedIsReported wants the reason and the cure in the log and in the health, and the last state in force.
func TestWhatCannotBeUsedIsReported(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ do, cure, undo string }{
		"a column renamed":             {"ALTER TABLE devices RENAME COLUMN shared_secret TO secret", "RENAME COLUMN ... TO shared_secret", "ALTER TABLE devices RENAME COLUMN secret TO shared_secret"},
		"the table dropped":            {"DROP TABLE devices", "bouncerctl device add", "CREATE TABLE devices" + tableText + "; INSERT INTO devices VALUES ('a', 'one', 1)"},
		"a table of ours is another's": {"DROP TABLE disabled_devices; CREATE TABLE disabled_devices (x)", "rename it", "DROP TABLE disabled_devices"},
		"a version of another program": {"PRAGMA user_version = 7", "set PRAGMA user_version, set it to 0", "PRAGMA user_version = 0"},
		"a version below 0":            {"PRAGMA user_version = -1", "set it to 0", "PRAGMA user_version = 0"},
		"locked":                       {"BEGIN EXCLUSIVE", "end it", "ROLLBACK"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := newPath(t)
			db := pythonDatabase(t, path)
			insert(t, db, "a", "one")
			r, log := openRegistry(t, path)
			db.SetMaxOpenConns(1)
			execute(t, db, c.do)
			within(t, 5*time.Second, "reported", func() bool {
				_, err := r.Health()
				return err != nil && strings.Contains(err.Error(), c.cure) && log.Count("cannot be read") == 1
			})
			if !strings.Contains(log.String(), c.cure) || r.state("a") != "one" {
				t.Errorf("a is %s: %s", r.state("a"), log)
			}
			execute(t, db, c.undo)
			within(t, 5*time.Second, "can be read again", func() bool { _, err := r.Health(); return err == nil })
			insert(t, db, "a", "two")
			r.becomes(t, "a", "two")
		})
	}
}

// TestReread reads everything on demand, also what nothing shows.
func TestReread(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	insert(t, db, []byte("x"), "one")
	r, log := openRegistry(t, path)
	before := log.Count("id=X'78'")
	r.Reread()
	within(t, 2*time.Second, "named again", func() bool { return log.Count("id=X'78'") == before+1 })
	if r.state("a") != "one" {
		t.Error(r.state("a"))
	}
}

// TestStoreOnOddTables has bouncerctl work with them, or say what to do.
func TestStoreOnOddTables(t *testing.T) {
	t.Parallel()
	open := func(text string) (*Store, *sql.DB, error) {
		path := newPath(t)
		db := openDatabase(t, path)
		execute(t, db, text)
		s, err := OpenStore(path)
		if err == nil {
			t.Cleanup(func() { _ = s.Close() })
		}
		return s, db, err
	}
	if _, _, err := open("CREATE TABLE devices (device_id TEXT PRIMARY KEY, shared_secret TEXT)"); err == nil || !strings.Contains(err.Error(), "ADD COLUMN created_at") {
		t.Error(err)
	}
	twice, _, err := open("CREATE TABLE devices (device_id TEXT, shared_secret TEXT, created_at INTEGER); INSERT INTO devices VALUES ('a', 'one', 1)")
	if err != nil {
		t.Fatal(err)
	}
	if err := twice.Add(t.Context(), "a", []byte("two")); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	s, db, err := open("CREATE TABLE Devices (device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL) WITHOUT ROWID")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(t.Context(), "a", []byte("one")); err != nil {
		t.Fatal(err)
	}
	if s.key, err = NewKey(GenerateKey()); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Recrypt(t.Context(), nil); n != 1 || err != nil {
		t.Error(n, err)
	}
	if got := scalar[string](t, db, "SELECT shared_secret FROM devices"); !isSealed([]byte(got)) {
		t.Error(got)
	}
	if secrets, err := s.Secrets(t.Context(), "a"); err != nil || string(secrets[0]) != "one" {
		t.Error(err)
	}
}
