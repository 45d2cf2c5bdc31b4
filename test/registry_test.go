package test

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestDatabaseTheBrokerMayOnlyRead has other programs change it, in a directory that the broker may not write, as after
// bouncerctl init: what is copied over it, with SQLite's own counter the same, is in force within a second; WAL mode,
// which such a broker cannot read, is named with its cure in the log, in the health and at the start.
func TestDatabaseTheBrokerMayOnlyRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can write where the broker cannot")
	}
	g := harness.New(t, broker.Options{Devices: []string{"a", "b"}, HTTP: true})
	a, b := g.Device("a"), g.Device("b")
	dir := filepath.Join(g.Broker.Dir, "registry")
	path := filepath.Join(dir, "devices.db")
	g.Must(os.Mkdir(dir, 0o755))
	g.Must(os.Chmod(dir, 0o755))
	write := func(path string, devices ...*device.Device) *sql.DB {
		t.Helper()
		db, err := sql.Open("sqlite3", path)
		g.Must(err)
		db.SetMaxOpenConns(1)
		_, err = db.Exec("CREATE TABLE devices(device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL)")
		g.Must(err)
		for _, d := range devices {
			_, err = db.Exec("INSERT INTO devices VALUES (?, ?, 1)", d.ID, string(d.Secret))
			g.Must(err)
		}
		return db
	}
	g.Must(write(path, a).Close())
	g.Must(os.Chmod(path, 0o644))
	g.Must(g.Broker.SetSettings(map[string]any{"database": path}))
	g.Must(g.Broker.Restart())
	ca, cb := g.Connect(a, harness.MQTT5), g.Connect(b, harness.MQTT5)
	accepted := func(c *harness.Client, d *device.Device) bool {
		return g.Publish(c, c.DataTopic(), 1, d.Sign("1").Bytes).Accepted()
	}
	if !accepted(ca, a) || accepted(cb, b) {
		t.Fatal("the first database is not in force")
	}

	g.Must(write(path+".new", b).Close())
	if out, err := exec.Command("cp", path+".new", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	g.Eventually("what was copied over is in force", func() bool { return accepted(cb, b) })

	db, err := sql.Open("sqlite3", path)
	g.Must(err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec("PRAGMA journal_mode = WAL")
	g.Must(err)
	_, err = db.Exec("INSERT INTO devices VALUES ('c', 'one', 1)")
	g.Must(err)
	g.Must(db.Close())
	cure := "PRAGMA journal_mode=DELETE"
	_, err = g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: device database", "WAL mode", cure))
	g.Must(err)
	g.Eventually("the health says so", func() bool {
		s := g.Ask("GET", "/healthz", "")
		return s.Status == 503 && strings.Contains(string(s.Text), "WAL mode") && strings.Contains(string(s.Text), "journal_mode=DELETE")
	})
	if !accepted(cb, b) {
		t.Error("the last good state is not in force")
	}
	g.Must(g.Broker.Stop())
	if err := g.Broker.Start(); err == nil {
		t.Error("started with a database that it cannot read")
	} else if _, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("database: device database: ", cure)); err != nil {
		t.Error(err)
	}
	db, err = sql.Open("sqlite3", path)
	g.Must(err)
	_, err = db.Exec("PRAGMA journal_mode = DELETE")
	g.Must(err)
	g.Must(db.Close())
	g.Must(g.Broker.Start())
	g.Must(g.Broker.Signal(syscall.SIGHUP))
	cb = g.Connect(b, harness.MQTT5)
	if !accepted(cb, b) {
		t.Error("not in force after the cure")
	}
}

// inForce makes a change of the registry and publishes as a device until messages are accepted, or refused with this
// reason where one is given: at most a second.
func inForce(g *harness.Gateway, c *harness.Client, what string, change func(), reason string) {
	g.Helper()
	change()
	changed := time.Now()
	every := time.NewTicker(25 * time.Millisecond) // the log has room for the refusals
	defer every.Stop()
	for ctx := g.Limit(); ; {
		mark := g.Broker.Log().Mark()
		accepted := g.Publish(c, c.DataTopic(), 1, c.Sign("22").Bytes).Accepted()
		if accepted == (reason == "") {
			took := time.Since(changed)
			g.Logf("%s: in force after %v", what, took)
			if took > time.Second {
				g.Errorf("%s: in force after %v, want within a second", what, took)
			}
			if accepted {
				return
			}
			line, err := g.Broker.WaitLog(ctx, mark, broker.Contains("bouncer: refused device="))
			g.Must(err)
			if harness.Fields(line)["reason"] != reason {
				g.Errorf("%s: want reason %s, the log says: %s", what, reason, line)
			}
			return
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			g.Fatalf("%s: accepted is still %v", what, accepted)
		}
	}
}

// TestRegistryChanges changes the registry while the broker runs: with plain SQL in a database of the Python gateway, and
// with bouncerctl's code in one of its own.
func TestRegistryChanges(t *testing.T) {
	type changes struct {
		add     func(id, secret string)
		remove  func(id string)
		disable func(id string, disabled bool)
	}
	run := func(t *testing.T, options broker.Options, with func(*harness.Gateway) changes) {
		options.Devices = []string{"sensor_001"}
		g := harness.New(t, options)
		change := with(g)
		known, added := g.Connect(g.Device("sensor_001"), harness.MQTT5), g.Connect(g.Device("sensor_002"), harness.MQTT5)
		kept := known.Sign("22")
		g.Accept(known, 1, kept)

		inForce(g, added, "before", func() {}, "unknown_device")
		inForce(g, added, "adding", func() { change.add("sensor_002", string(added.Secret)) }, "")
		// Who is disabled or removed is disconnected, and may come again.
		again := func(c *harness.Client) {
			select {
			case <-c.Done():
			case <-time.After(harness.Patience):
				g.Fatal("not disconnected")
			}
			c.Client = g.Connect(c.Device, harness.MQTT5).Client
		}
		change.disable("sensor_001", true)
		again(known)
		inForce(g, known, "disabling", func() {}, "disabled")
		inForce(g, known, "enabling", func() { change.disable("sensor_001", false) }, "")
		inForce(g, known, "a new secret", func() {
			g.Must(g.Broker.SQL("UPDATE devices SET shared_secret = ? WHERE device_id = ?", "another", "sensor_001"))
		}, "bad_signature")
		renewed := *known
		renewed.Device = &device.Device{ID: known.ID, Secret: []byte("another")}
		inForce(g, &renewed, "the new secret", func() {}, "")
		change.remove("sensor_001")
		again(known)
		renewed.Client = known.Client
		inForce(g, &renewed, "removing", func() {}, "unknown_device")
		inForce(g, known, "adding again", func() { change.add("sensor_001", string(known.Secret)) }, "")
		// What was accepted before stays accepted: the removal has not made the gateway forget.
		g.Refuse(known, known.DataTopic(), 1, kept, "replay")
		inForce(g, added, "the other device, all the while", func() {}, "")
	}
	t.Run("Python gateway", func(t *testing.T) {
		run(t, broker.Options{PythonDatabase: true}, func(g *harness.Gateway) changes {
			return changes{
				add: func(id, secret string) {
					g.Must(g.Broker.SQL("INSERT INTO devices(device_id, shared_secret, created_at) VALUES(?, ?, 0)", id, secret))
				},
				remove: func(id string) { g.Must(g.Broker.SQL("DELETE FROM devices WHERE device_id = ?", id)) },
				disable: func(id string, disabled bool) {
					statement := "DELETE FROM disabled_devices WHERE device_id = ?"
					if disabled {
						statement = "INSERT INTO disabled_devices(device_id, disabled_at) VALUES(?, 0)"
					}
					g.Must(g.Broker.SQL(statement, id))
				},
			}
		})
	})
	t.Run("bouncerctl", func(t *testing.T) {
		run(t, broker.Options{}, func(g *harness.Gateway) changes {
			store, err := registry.OpenStore(g.Broker.Path("devices.db"))
			g.Must(err)
			g.Cleanup(func() { g.Must(store.Close()) })
			return changes{
				add:     func(id, secret string) { g.Must(store.Add(g.Limit(), id, registry.Secret(secret))) },
				remove:  func(id string) { g.Must(store.Remove(g.Limit(), id)) },
				disable: func(id string, disabled bool) { g.Must(store.SetDisabled(g.Limit(), id, disabled)) },
			}
		})
	})
}
