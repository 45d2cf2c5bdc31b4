package test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTour takes the tour of `make run ONCE=1`, on free ports and in a directory of its own.
func TestTour(t *testing.T) {
	// The broker's own account must be able to read what is made there, and t.TempDir is closed to it.
	parent, err := os.MkdirTemp("", "tour")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "../scripts/run")
	c.Env = append(os.Environ(), "ONCE=1", "RUN_DIR="+filepath.Join(parent, "run"),
		"PORT="+freePort(t), "BACKEND_PORT="+freePort(t), "HTTP_PORT="+freePort(t))
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 10 * time.Second
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"refused: replay", "refused: stale", "refused: bad_signature", "refused: identity_mismatch", "refused: topic_mismatch",
		"refused: malformed", "refused: no certificate", "200 succeeded", "refused: forbidden_topic", "refused: replayed",
		"refused: forged", "18 of 18 as expected",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the tour does not say %q:\n%s", want, out)
		}
	}
}

// freePort returns a port of 127.0.0.1 that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
