package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/brokerconf"
)

// TestCheckWAL: a database in WAL mode is an error where the broker's user cannot write the directory, else a warning.
func TestCheckWAL(t *testing.T) {
	dir := newDir(t)
	device(t, dir, "add", "a", "--no-cert")
	path := filepath.Join(dir, "devices.db")
	for _, c := range []struct {
		mode  string
		user  account
		error bool
	}{
		{"DELETE", account{uid: 54321, gid: 54321}, false},
		{"WAL", account{uid: 54321, gid: 54321}, true},
		{"WAL", account{uid: os.Geteuid(), gid: os.Getegid()}, false},
	} {
		db := openDatabase(t, dir)
		if _, err := db.Exec("PRAGMA journal_mode = " + c.mode); err != nil {
			t.Fatal(err)
		}
		_ = db.Close()
		k := checker{broker: &c.user}
		found := k.checkWAL("bouncer.toml:1", path)
		if wal := c.mode == "WAL"; found != c.error || len(k.findings) != map[bool]int{true: 1}[wal] {
			t.Errorf("%s: %t, %v", c.mode, found, k.findings)
		}
		for _, f := range k.findings {
			if f.error != c.error || !strings.Contains(f.text, `"PRAGMA journal_mode=DELETE"`) {
				t.Error(f)
			}
		}
	}
}

// TestCheckMarks finds byte order marks in what Mosquitto reads itself.
func TestCheckMarks(t *testing.T) {
	dir := t.TempDir()
	conf, acl := filepath.Join(dir, "mosquitto.conf"), filepath.Join(dir, "acl")
	writeFile(t, acl, "\ufefftopic read #\n")
	writeFile(t, conf, "\ufeff# first\nlistener 1883\n")
	var marked checker
	if marked.checkMarks(conf); len(marked.findings) != 1 || marked.findings[0].where != conf {
		t.Error(marked.findings)
	}
	writeFile(t, conf, "# first\nlistener 1883\nacl_file "+acl+"\n")
	var k checker
	var err error
	if k.conf, err = brokerconf.ReadFile(conf); err != nil {
		t.Fatal(err)
	}
	k.checkMarks(conf)
	if len(k.findings) != 1 || !k.findings[0].error || !strings.Contains(k.findings[0].text, "begins with a byte order mark") ||
		k.findings[0].where != conf+":3" {
		t.Error(k.findings)
	}
}
