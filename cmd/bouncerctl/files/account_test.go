package files

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestBarrier: what keeps the broker's user from its files is found.
func TestBarrier(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(dir, "inner")
	file := filepath.Join(inner, "file")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	us := &Account{UID: os.Getuid(), GID: os.Getgid()}
	group := &Account{UID: os.Getuid() + 1, GID: os.Getgid()}
	for p := filepath.Dir(dir); group.Barrier(p) != ""; p = filepath.Dir(p) {
		// t.TempDir makes its parents as the umask says.
		if err := os.Chmod(p, 0o755); err != nil {
			t.Skipf("cannot open %s: %v", p, err)
		}
	}
	for _, test := range []struct {
		who       *Account
		dir, file fs.FileMode
		want      string
	}{
		{us, 0o700, 0o600, ""},
		{us, 0o077, 0o600, inner},
		{us, 0o700, 0o077, file},
		{group, 0o710, 0o640, ""},
		{group, 0o701, 0o640, inner},
		{group, 0o710, 0o604, file},
		{nil, 0o000, 0o000, ""},
	} {
		if err := errors.Join(os.Chmod(file, test.file), os.Chmod(inner, test.dir)); err != nil {
			t.Fatal(err)
		}
		got := test.who.Barrier(file)
		if err := os.Chmod(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		if got != test.want {
			t.Errorf("%+v, directory %04o, file %04o: %q, want %q", test.who, test.dir, test.file, got, test.want)
		}
	}
}
