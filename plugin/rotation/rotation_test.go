package rotation

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mosquitto-bouncer/plugin/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func secrets(names ...string) (all [][]byte) {
	for _, name := range names {
		all = append(all, []byte(name))
	}
	return all
}

func openMemory(t *testing.T, path string, o Options) *Memory {
	t.Helper()
	m, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// chosen returns the secret that is signed with.
func chosen(m *Memory, device string, names ...string) string {
	return names[Choose(m, device, secrets(names...))]
}

func becomes(t *testing.T, want string, got func() string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for got() != want {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%q, want %q", got(), want)
		}
	}
}

func TestOldUntilTheNewIsUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	var mu sync.Mutex
	var adopted []string
	m := openMemory(t, path, Options{Adopted: func(device string) {
		mu.Lock()
		adopted = append(adopted, device)
		mu.Unlock()
	}})
	if got := chosen(m, "a", "one"); got != "one" {
		t.Error(got)
	}
	if got := chosen(m, "a", "two", "one"); got != "one" {
		t.Errorf("nothing used: %s", got)
	}
	m.Note("a", secrets("two", "one"), 1)
	m.Note("b", secrets("two", "one"), 0)
	becomes(t, "two", func() string { return chosen(m, "b", "two", "one") })
	if got := chosen(m, "a", "two", "one"); got != "one" {
		t.Errorf("the old one used: %s", got)
	}
	m.Note("a", secrets("two", "one"), 0)
	becomes(t, "two", func() string { return chosen(m, "a", "two", "one") })
	// Again: the one before, until the newest is used; an older one takes nothing back.
	if got := chosen(m, "a", "three", "two", "one"); got != "two" {
		t.Errorf("two rotations: %s", got)
	}
	m.Note("a", secrets("three", "two", "one"), 2)
	m.Note("c", secrets("two", "one"), 0)
	becomes(t, "two", func() string { return chosen(m, "c", "two", "one") })
	if got := chosen(m, "a", "three", "two", "one"); got != "two" {
		t.Errorf("an old secret used again: %s", got)
	}
	// At once, after a theft: the old one is not valid any more.
	if got := chosen(m, "a", "three"); got != "three" {
		t.Error(got)
	}
	// Removed, and registered by the same id: what was remembered is of no secret that it has.
	if got := chosen(m, "a", "five", "four"); got != "four" {
		t.Error(got)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if got := fmt.Sprint(adopted); got != "[b a c]" {
		t.Error(got)
	}
	mu.Unlock()

	m = openMemory(t, path, Options{Rotating: func(device string) bool { return device == "a" }})
	if got := chosen(m, "a", "three", "two", "one"); got != "two" {
		t.Errorf("after a restart: %s", got)
	}
	if got := chosen(m, "b", "two", "one"); got != "one" {
		t.Errorf("not forgotten: %s", got)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"three", "two", "one"} {
		if bytes.Contains(content, []byte(secret)) {
			t.Errorf("the file holds %q", secret)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
}

// TestForgettingHoldsNoLock: while it is asked for each device whether it is rotating, the broker's thread need not wait.
func TestForgettingHoldsNoLock(t *testing.T) {
	var m *Memory
	asked := 0
	m = openMemory(t, filepath.Join(t.TempDir(), FileName), Options{Rotating: func(device string) bool {
		asked++
		return chosen(m, device, "two", "one") != "two" || !m.Note(device, secrets("two", "one"), 0)
	}})
	m.Note("a", secrets("two", "one"), 0)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m.prune() // in the place of the goroutine, which has ended
	if got := chosen(m, "a", "two", "one"); asked != 1 || got != "one" {
		t.Errorf("asked %d times, %s", asked, got)
	}
}

func TestChooseWithoutMemory(t *testing.T) {
	if got := chosen(nil, "a", "two", "one"); got != "one" {
		t.Error(got)
	}
}

func TestNotesAreBounded(t *testing.T) {
	m := &Memory{noted: make(map[string]note)}
	m.loop = loop.New(slog.Default(), "", m.round) // it does not run
	for i := range maxNoted {
		if !m.Note(fmt.Sprint(i), nil, 0) {
			t.Fatal(i)
		}
	}
	if m.Note("one more", nil, 0) || !m.Note("0", nil, 0) {
		t.Error("the bound")
	}
}

func TestDamagedIsBegunAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	if err := os.WriteFile(path, bytes.Repeat([]byte("damage "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	m := openMemory(t, path, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	m.Note("a", secrets("two", "one"), 0)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil || !strings.Contains(log.String(), "damaged") {
		t.Error(err, log.String())
	}
	if got := chosen(openMemory(t, path, Options{}), "a", "two", "one"); got != "two" {
		t.Error(got)
	}
}

func TestForeignAndNewer(t *testing.T) {
	for statement, want := range map[string]string{
		"CREATE TABLE x (y)": "not a database of secrets in use",
		"PRAGMA application_id = 0x4d51524f; PRAGMA user_version = 2": "newer version",
	} {
		path := filepath.Join(t.TempDir(), FileName)
		d, _, err := open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.db.Exec("PRAGMA application_id = 0; PRAGMA user_version = 0;" + statement); err != nil {
			t.Fatal(err)
		}
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", statement, err)
		}
	}
}

func TestFullDiskIsReportedAndTriedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	m := openMemory(t, path, Options{})
	if _, err := m.db.db.Exec("PRAGMA max_page_count = 1; ALTER TABLE used_secrets RENAME TO away"); err != nil {
		t.Fatal(err)
	}
	m.Note("a", secrets("two", "one"), 0)
	becomes(t, "two", func() string { return chosen(m, "a", "two", "one") }) // in force all the same
	becomes(t, "true", func() string { return fmt.Sprint(m.Err() != "") })
	if _, err := m.db.db.Exec("ALTER TABLE away RENAME TO used_secrets"); err != nil {
		t.Fatal(err)
	}
	becomes(t, "", m.Err)
}
