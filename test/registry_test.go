package test

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"mosquitto-bouncer/test/broker"
	"mosquitto-bouncer/test/device"
)

// TestDatabaseTheBrokerMayOnlyRead has other programs change it, in a directory that the broker may not write, as after
// bouncerctl init: what is copied over it, with SQLite's own counter the same, is in force within a second; WAL mode,
// which such a broker cannot read, is named with its cure in the log, in the health and at the start.
func TestDatabaseTheBrokerMayOnlyRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can write where the broker cannot")
	}
	g := newGate(t, broker.Options{Devices: []string{"a", "b"}, HTTP: true})
	a, b := g.device("a"), g.device("b")
	dir := filepath.Join(g.broker.Dir, "registry")
	path := filepath.Join(dir, "devices.db")
	g.no(os.Mkdir(dir, 0o755))
	g.no(os.Chmod(dir, 0o755))
	write := func(path string, devices ...*device.Device) *sql.DB {
		t.Helper()
		db, err := sql.Open("sqlite3", path)
		g.no(err)
		db.SetMaxOpenConns(1)
		_, err = db.Exec("CREATE TABLE devices(device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL)")
		g.no(err)
		for _, d := range devices {
			_, err = db.Exec("INSERT INTO devices VALUES (?, ?, 1)", d.ID, string(d.Secret))
			g.no(err)
		}
		return db
	}
	g.no(write(path, a).Close())
	g.no(os.Chmod(path, 0o644))
	g.no(g.broker.SetSettings(map[string]any{"database": path}))
	g.no(g.broker.Restart())
	ca, cb := g.connect(a, mqtt5), g.connect(b, mqtt5)
	accepted := func(c *client, d *device.Device) bool {
		return g.publish(c, c.DataTopic(), 1, d.Sign("1").Bytes).Accepted()
	}
	if !accepted(ca, a) || accepted(cb, b) {
		t.Fatal("the first database is not in force")
	}

	g.no(write(path+".new", b).Close())
	if out, err := exec.Command("cp", path+".new", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	g.eventually("what was copied over is in force", func() bool { return accepted(cb, b) })

	db, err := sql.Open("sqlite3", path)
	g.no(err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec("PRAGMA journal_mode = WAL")
	g.no(err)
	_, err = db.Exec("INSERT INTO devices VALUES ('c', 'one', 1)")
	g.no(err)
	g.no(db.Close())
	cure := "PRAGMA journal_mode=DELETE"
	_, err = g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: device database", "WAL mode", cure))
	g.no(err)
	g.eventually("the health says so", func() bool {
		s := g.ask("GET", "/healthz", "")
		return s.Status == 503 && strings.Contains(string(s.Text), "WAL mode") && strings.Contains(string(s.Text), "journal_mode=DELETE")
	})
	if !accepted(cb, b) {
		t.Error("the last good state is not in force")
	}
	g.no(g.broker.Stop())
	if err := g.broker.Start(); err == nil {
		t.Error("started with a database that it cannot read")
	} else if _, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("database: device database: ", cure)); err != nil {
		t.Error(err)
	}
	db, err = sql.Open("sqlite3", path)
	g.no(err)
	_, err = db.Exec("PRAGMA journal_mode = DELETE")
	g.no(err)
	g.no(db.Close())
	g.no(g.broker.Start())
	g.no(g.broker.Signal(syscall.SIGHUP))
	cb = g.connect(b, mqtt5)
	if !accepted(cb, b) {
		t.Error("not in force after the cure")
	}
}
