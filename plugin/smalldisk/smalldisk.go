// Package smalldisk gives a test a file system of its own, small enough to fill. Only tests use it.
package smalldisk

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// Mount mounts a tmpfs with these options, such as "size=2m", in a mount namespace of its own, and returns its directory. It is
// unmounted at the end of the test.
//
// To have the namespace, Mount runs the test again in a child process: there it returns the directory, and here "", when the child
// has ended; the test is then to return. Where no file system can be mounted, the test is skipped.
func Mount(t *testing.T, options string) string {
	t.Helper()
	const inside = "BOUNCER_TEST_PRIVATE_MOUNTS"
	if os.Getenv(inside) == "" {
		child := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		child.Env = append(os.Environ(), inside+"=1")
		out, err := child.CombinedOutput()
		if os.Geteuid() != 0 || strings.Contains(string(out), "unshare failed") || strings.Contains(string(out), "cannot mount") {
			t.Skipf("only root with the right to mount can mount a file system to fill: %s", out)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatalf("%v\n%s", err, out)
		}
		return ""
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}
