package device

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// readLog opens a log and returns its records.
func readLog(path string) (records []string, l *recordLog, err error) {
	l, err = openLog(path, func(b []byte) error {
		records = append(records, string(b))
		return nil
	})
	return records, l, err
}

// TestDamage cuts a log at every byte, and changes every byte. What was not synced may go; what was synced is there, or an error is
// returned.
func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	_, l, err := readLog(path)
	must(t, err)
	must(t, l.replace(func(yield func([]byte) bool) {
		for i := range 3 {
			if !yield(fmt.Appendf(nil, "replaced %d", i)) {
				return
			}
		}
	}))
	must(t, l.add(true, []byte("first"), []byte("second")))
	must(t, l.add(true, []byte("third")))
	synced := l.synced
	must(t, l.add(false, []byte("not synced 1")))
	must(t, l.add(false, []byte("not synced 2")))
	must(t, l.close())
	whole, err := os.ReadFile(path)
	must(t, err)
	want := []string{"replaced 0", "replaced 1", "replaced 2", "first", "second", "third", "not synced 1", "not synced 2"}
	if got, l, err := readLog(path); err != nil || !slices.Equal(got, want) {
		t.Fatalf("%q, %v", got, err)
	} else {
		must(t, l.close())
	}
	check := func(what string, at int, damaged []byte) {
		t.Helper()
		must(t, os.WriteFile(path, damaged, 0o600))
		got, l, err := readLog(path)
		if err != nil {
			if int64(at) >= synced {
				t.Errorf("%s at %d: %v", what, at, err)
			}
			return
		}
		defer l.close()
		if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
			t.Errorf("%s at %d: the records are %q", what, at, got)
		}
		// The last batch that was synced may seem to be a crash's if nothing is behind it, and only then.
		if int64(at) >= synced && len(got) < 6 || what == "changed" && len(got) < 5 {
			t.Errorf("%s at %d: %d records", what, at, len(got))
		}
		// What is written next follows on what is left.
		must(t, l.add(true, []byte("next")))
		after, again, err := readLog(path)
		must(t, err)
		defer again.close()
		if !slices.Equal(after, append(slices.Clone(want[:len(got)]), "next")) {
			t.Errorf("%s at %d, and written to: %q", what, at, after)
		}
	}
	for at := range whole {
		check("cut", at, whole[:at])
		for range 3 {
			damaged := bytes.Clone(whole)
			damaged[at] ^= byte(1 + rand.N(255))
			check("changed", at, damaged)
		}
		zeros := append(bytes.Clone(whole[:at]), make([]byte, len(whole)-at)...)
		if int64(at) >= synced {
			check("zeros", at, zeros)
		}
	}
}

// TestDamageInTheMiddle: a record that was synced is damaged, and others stand behind it.
func TestDamageInTheMiddle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	_, l, err := readLog(path)
	must(t, err)
	for i := range 5 {
		must(t, l.add(true, fmt.Appendf(nil, "record %d", i)))
	}
	must(t, l.close())
	whole, err := os.ReadFile(path)
	must(t, err)
	last := bytes.Index(whole, []byte("record 4")) - recordHeader
	for at := len(logMagic); at < last; at++ {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 0x20
		must(t, os.WriteFile(path, damaged, 0o600))
		if got, _, err := readLog(path); !errors.Is(err, errDamaged) {
			t.Fatalf("changed at %d: %q, %v", at, got, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, damaged) {
			t.Fatalf("changed at %d: the file was changed", at)
		}
	}
}

// TestReplacedIsWhole: a log that was replaced ends with nothing that a crash can have damaged.
func TestReplacedIsWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	_, l, err := readLog(path)
	must(t, err)
	must(t, l.replace(slices.Values([][]byte{[]byte("one"), []byte("two")})))
	must(t, l.close())
	whole, err := os.ReadFile(path)
	must(t, err)
	for at := len(logMagic); at < len(whole)-recordHeader; at++ {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 1
		must(t, os.WriteFile(path, damaged, 0o600))
		if got, _, err := readLog(path); !errors.Is(err, errDamaged) {
			t.Fatalf("changed at %d: %q, %v", at, got, err)
		}
	}
}

// TestForeignFiles: what is no log is not read as one, and not changed.
func TestForeignFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, text := range []string{"", "x", "mbdev02\nabc", string(make([]byte, 4096))} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if _, _, err := readLog(path); err == nil {
			t.Errorf("%q was taken for a log", text)
		}
		if now, _ := os.ReadFile(path); string(now) != text {
			t.Errorf("%q was changed to %q", text, now)
		}
	}
	if _, _, err := readLog(t.TempDir()); err == nil {
		t.Error("a directory was taken for a log")
	}
}
