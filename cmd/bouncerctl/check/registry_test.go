package check

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/plugin/registry"
)

// TestCheckWAL: a database in WAL mode is an error where the broker's user cannot write the directory, else a warning.
func TestCheckWAL(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "devices.db")
	store, err := registry.OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Register(t.Context(), registry.Registration{ID: "a", Secret: []byte("secret")}), store.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mode  string
		user  files.Account
		error bool
	}{
		{"DELETE", files.Account{UID: 54321, GID: 54321}, false},
		{"WAL", files.Account{UID: 54321, GID: 54321}, true},
		{"WAL", files.Account{UID: os.Geteuid(), GID: os.Getegid()}, false},
	} {
		db, err := sql.Open("sqlite3", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec("PRAGMA journal_mode = " + c.mode); err != nil {
			t.Fatal(err)
		}
		_ = db.Close()
		k := checker{Options: Options{Broker: &c.user}}
		found := k.checkWAL("bouncer.toml:1", path)
		if wal := c.mode == "WAL"; found != c.error || len(k.findings) != map[bool]int{true: 1}[wal] {
			t.Errorf("%s: %t, %v", c.mode, found, k.findings)
		}
		for _, f := range k.findings {
			if f.Error != c.error || !strings.Contains(f.Text, `"PRAGMA journal_mode=DELETE"`) {
				t.Error(f)
			}
		}
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
