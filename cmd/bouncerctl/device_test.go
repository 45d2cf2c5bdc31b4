package main

import (
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"
)

func TestDeviceLife(t *testing.T) {
	dir := newDir(t)
	device(t, dir, "add", "b")
	device(t, dir, "add", "a-longer-id")
	db := openDatabase(t, dir)
	if _, err := db.Exec(`UPDATE devices SET created_at = 1727712000 WHERE device_id = 'b'`); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO devices VALUES ('bad id', 'x', 1727712001)`); err != nil {
		t.Fatal(err)
	}

	if got := device(t, dir, "disable", "b"); got != "Disabled b.\n" {
		t.Errorf("got %q", got)
	}
	list := regexp.MustCompile(`\AID            REGISTERED             STATE        CERTIFICATE UNTIL
a-longer-id   \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ   enabled      \d{4}-\d\d-\d\d
b             2024-09-30T16:00:00Z   disabled     \d{4}-\d\d-\d\d
"bad id"      2024-09-30T16:00:01Z   invalid id   -
\z`)
	if got := device(t, dir, "list"); !list.MatchString(got) {
		t.Errorf("got:\n%s", got)
	}
	var devices []struct {
		ID        string     `json:"id"`
		CreatedAt *time.Time `json:"created_at"`
		Disabled  bool       `json:"disabled"`
	}
	if err := json.Unmarshal([]byte(device(t, dir, "list", "--json")), &devices); err != nil {
		t.Fatal(err)
	}
	if len(devices) != 3 || devices[0].ID != "a-longer-id" || devices[0].Disabled || time.Since(*devices[0].CreatedAt) > time.Minute ||
		devices[1].ID != "b" || !devices[1].Disabled || devices[1].CreatedAt.Unix() != 1727712000 {
		t.Errorf("got %+v", devices)
	}

	if got := device(t, dir, "enable", "b"); got != "Enabled b.\n" {
		t.Errorf("got %q", got)
	}
	if got := device(t, dir, "remove", "a-longer-id"); got != "Removed a-longer-id. Its certificate still connects; to shut out a lost device, disable it instead.\n" {
		t.Errorf("got %q", got)
	}
	if got := device(t, dir, "remove", "bad id"); got != "Removed bad id. Its certificate still connects; to shut out a lost device, disable it instead.\n" {
		t.Errorf("got %q", got)
	}
	only := regexp.MustCompile(`\A\[\n\{"id":"b","created_at":"2024-09-30T16:00:00Z","disabled":false,"secret_since":"2024-09-30T16:00:00Z","old_secrets":0,"certificate_expires":"[^"]*"\}\n\]\n\z`)
	if got := device(t, dir, "list", "--json"); !only.MatchString(got) {
		t.Errorf("got %q", got)
	}
	for _, verb := range []string{"remove", "disable", "enable"} {
		fail(t, 1, `device "a-longer-id" is not registered; see bouncerctl device list`, deviceArgs(dir, verb, "a-longer-id")...)
	}
}

func TestDeviceConfig(t *testing.T) {
	fail(t, 1, "/nonexistent/b.toml: cannot be read: no such file or directory; name an existing file, or create one with bouncerctl init",
		"device", "list", "--config", "/nonexistent/b.toml")
	dir := t.TempDir()
	file := filepath.Join(dir, "bouncer.toml")
	writeFile(t, file, "databse = \"x\"\n")
	fail(t, 1, file+":1: databse: unknown key; did you mean database?", "device", "list", "--config", file)

	// A database that is not there is made by add alone.
	writeFile(t, file, "database = \"new.db\"\n")
	fail(t, 1, "there is no device database "+dir+"/new.db; register a device with bouncerctl device add, or correct database in bouncer.toml",
		"device", "list", "--config", file)
	succeed(t, "device", "add", "a", "--no-cert", "--config", file)
	if info, err := os.Stat(filepath.Join(dir, "new.db")); err != nil || info.Mode() != 0o640 {
		t.Errorf("new.db: %v, %v", info, err)
	}
	writeFile(t, file, "database = \"none/new.db\"\n")
	fail(t, 1, "making the device database: open "+dir+"/none/new.db: no such file or directory; make its directory, or correct database in bouncer.toml",
		"device", "add", "a", "--no-cert", "--config", file)
}

// TestWhatIsNoID: what another program has registered leads to no file elsewhere, and neither a terminal nor a spreadsheet
// obeys it.
func TestWhatIsNoID(t *testing.T) {
	dir := newDir(t)
	db, err := sql.Open("sqlite3", filepath.Join(dir, "devices.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const red = "\x1b[31mred\u009b"
	for _, id := range []string{"../../away", red, "=1+1"} {
		if _, err := db.Exec("INSERT INTO devices VALUES (?, 'secret', 1)", id); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "bouncer.toml")
	for _, verb := range []string{"rotate", "renew"} {
		fail(t, 1, `"../../away" is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -); remove it, and register the device by another`,
			"device", verb, "../../away", "--config", config)
	}
	if found, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "away*")); len(found) > 0 {
		t.Error(found)
	}
	for _, args := range [][]string{{"list"}, {"list", "--json"}, {"list", "--csv"}, {"show", red}, {"show", red, "--json"},
		{"disable", red}, {"unpin", red}, {"remove", red}} {
		got := device(t, dir, args[0], args[1:]...)
		if strings.ContainsAny(got, "\x1b\u009b") || strings.Contains("\n"+got, "\n=") {
			t.Errorf("%q: %q", args, got)
		}
		if args[len(args)-1] == "--json" && !json.Valid([]byte(got)) {
			t.Errorf("%q: %s", args, got)
		}
	}
}

// TestTimesThatAreNone lists every device whatever stands in created_at, and rotates it.
func TestTimesThatAreNone(t *testing.T) {
	dir := newDir(t)
	device(t, dir, "add", "good", "--no-cert")
	db, err := sql.Open("sqlite3", filepath.Join(dir, "devices.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	literals := []string{"1727712000123", "1727712000123456", "1727712000123456789", "1727712000.5", "'yesterday'", "'1727712000'", "-5", "-1727712000123",
		"1e300", "-1e300", "9e999", "X'00'", "253402300800", "9223372036854775807", "0"}
	for i, literal := range literals {
		if _, err := db.Exec("INSERT INTO devices VALUES ('odd_' || ?, 'secret', "+literal+")", i); err != nil {
			t.Fatalf("%s: %v", literal, err)
		}
	}
	if _, err := db.Exec("UPDATE device_details SET secret_since = 1e300, certificate_expires = 'never'; INSERT INTO device_details VALUES ('odd_0', 'x', 1e300)"); err != nil {
		t.Fatal(err)
	}
	var all []struct {
		ID        string  `json:"id"`
		CreatedAt *string `json:"created_at"`
	}
	if err := json.Unmarshal([]byte(device(t, dir, "list", "--json")), &all); err != nil || len(all) != len(literals)+1 {
		t.Fatal(len(all), err)
	}
	for _, d := range all {
		device(t, dir, "show", d.ID)
		device(t, dir, "rotate", d.ID, "--out", filepath.Join(t.TempDir(), "out"))
		var shown map[string]any
		if err := json.Unmarshal([]byte(device(t, dir, "show", d.ID, "--json")), &shown); err != nil {
			t.Error(d.ID, err)
		}
		if d.ID == "odd_0" && d.CreatedAt != nil {
			t.Error(*d.CreatedAt)
		}
	}
	for _, form := range []string{"--csv", "--json=false", "--expiring=30d"} {
		if got := strings.Count(device(t, dir, "list", form), "odd_"); got != len(literals) && form != "--expiring=30d" {
			t.Errorf("%s: %d", form, got)
		}
	}
}
