package files

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTrusted: where only root can replace anything, a way over links of root's is as good as another.
func TestTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to other users")
	}
	const somebody = 12345 // a user id that no user has
	base := t.TempDir()
	if err := os.MkdirAll(filepath.Join(base, "real/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(base, "real"), os.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real/../real/sub", filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"real", "link", "link/new", "missing/too"} {
		if err := Trusted(filepath.Join(base, dir), nil); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := os.Chown(filepath.Join(base, "real/sub"), somebody, 0); err != nil {
		t.Fatal(err)
	}
	if err := Trusted(filepath.Join(base, "link"), &Account{UID: somebody}); err != nil {
		t.Errorf("the directory of the account that the files are for: %v", err)
	}
}
