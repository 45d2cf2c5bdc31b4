package test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// compile makes a plugin of its own from C source, against the installed headers. With BOUNCER_PROBES it takes name.so of
// that directory instead, if it is there, and else leaves what it made there: where the broker is tried in a container,
// that has no compiler, and a plugin is to be one and the same for all releases.
func compile(t *testing.T, name, source string) []byte {
	t.Helper()
	dir := os.Getenv("BOUNCER_PROBES")
	if dir == "" {
		dir = t.TempDir()
	}
	library := filepath.Join(dir, name+".so")
	text, err := os.ReadFile(library)
	if !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	file := filepath.Join(t.TempDir(), name+".c")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-std=gnu11", "-Wall", "-shared", "-fPIC", "-o", library, file).CombinedOutput(); err != nil {
		t.Fatalf("compiling %s: %v\n%s", name, err, out)
	}
	if text, err = os.ReadFile(library); err != nil {
		t.Fatal(err)
	}
	return text
}
