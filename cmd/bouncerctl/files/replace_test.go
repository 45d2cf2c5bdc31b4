package files

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// entries returns the names of what is in a directory.
func entries(t *testing.T, dir string) string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// TestReplace: who reads meanwhile gets all of the old or all of the new; the mode stays; what is not a regular file stays too, and nothing
// is left behind.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	texts := []string{strings.Repeat("old\n", 10000), strings.Repeat("new!\n", 10000)}
	if err := errors.Join(os.WriteFile(file, []byte(texts[0]), 0o640), os.Chmod(file, 0o640), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if got, err := os.ReadFile(file); err != nil || string(got) != texts[0] && string(got) != texts[1] {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for i := range 50 {
		if err := Replace(file, []byte(texts[(i+1)%2]), nil); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-done
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, wrong := range []string{link, dir, filepath.Join(dir, "missing")} {
		if err := Replace(wrong, nil, nil); err == nil {
			t.Errorf("%s was replaced", wrong)
		}
	}
	if got := entries(t, dir); got != "file link" {
		t.Error(got)
	}
}

// TestReplaceAsRoot: the owner stays; in a directory of another user nothing is written, since they could have a file of their own there
// when the content comes.
func TestReplaceAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to other users")
	}
	const somebody = 12345 // a user id that no user has
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(file, []byte("old"), 0o600), os.Chown(file, 0, somebody)); err != nil {
		t.Fatal(err)
	}
	if err := Replace(file, []byte("new"), nil); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if own := info.Sys().(*syscall.Stat_t); own.Uid != 0 || own.Gid != somebody {
		t.Errorf("it belongs to %d:%d", own.Uid, own.Gid)
	}
	if err := os.Chown(dir, somebody, 0); err != nil {
		t.Fatal(err)
	}
	if err := Replace(file, []byte("new"), &Account{UID: somebody}); err != nil {
		t.Errorf("the directory of who reads the file: %v", err)
	}
	for what, open := range map[string]func() error{
		"chown root": func() error { return os.Chown(dir, somebody, 0) },
		"chmod o-w":  func() error { return errors.Join(os.Chown(dir, 0, 0), os.Chmod(dir, 0o777)) },
	} {
		if err := open(); err != nil {
			t.Fatal(err)
		}
		if err := Replace(file, []byte("secret"), nil); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("want %s: %v", what, err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "new" || entries(t, dir) != "file" {
		t.Errorf("%q, %v", got, err)
	}
}
