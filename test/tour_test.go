package test

import (
	"bufio"
	"context"
	"errors"
	"io"
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
	parent := tourDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := tourCommand(ctx, t, parent, "ONCE=1")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"refused: replay", "refused: stale", "refused: bad_signature", "refused: identity_mismatch", "refused: topic_mismatch",
		"refused: malformed", "refused: no certificate", "200 succeeded", "refused: forbidden_topic", "refused: repeated",
		"refused: forged", "18 of 18 as expected",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the tour does not say %q:\n%s", want, out)
		}
	}
}

// tourDir returns a directory for a tour.
func tourDir(t *testing.T) string {
	t.Helper()
	// The broker's own account must be able to read what is made there, and t.TempDir is closed to it.
	parent, err := os.MkdirTemp("", "tour")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	return parent
}

// tourCommand is `make run` on free ports, in a directory below parent. The end of ctx is Ctrl-C.
func tourCommand(ctx context.Context, t *testing.T, parent string, env ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(ctx, "../scripts/run")
	c.Env = append(append(os.Environ(), "RUN_DIR="+filepath.Join(parent, "run"),
		"PORT="+freePort(t), "BACKEND_PORT="+freePort(t), "HTTP_PORT="+freePort(t)), env...)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 10 * time.Second
	return c
}

// TestTourYourTurn pastes the commands that the tour shows at its end: the message is accepted, and the tour continues.
func TestTourYourTurn(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := tourCommand(ctx, t, tourDir(t))
	reader, writer := io.Pipe()
	c.Stdout, c.Stderr = writer, writer
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- c.Wait()
		_ = writer.Close()
	}()
	var said, commands strings.Builder
	pasting, got, after := false, false, 0
	for lines := bufio.NewScanner(reader); lines.Scan(); {
		line := lines.Text()
		said.WriteString(line + "\n")
		switch {
		case strings.Contains(line, "paste all lines at once:"):
			pasting = true
		case pasting && strings.HasPrefix(line, "Repeat only the last command"):
			pasting = false
		case strings.Contains(line, "Ctrl-C ends the tour"):
			go func() {
				sh := exec.CommandContext(ctx, "sh", "-eu", "-c", commands.String())
				if out, err := sh.CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("%v: %s\n%s", err, out, commands.String())
				}
			}()
		case strings.Contains(line, "the backend got") && strings.Contains(line, "of sensor_002"):
			got = true
		case got && strings.Contains(line, "PUBACK 0x00"):
			if after++; after == 2 { // sensor_001's connection has outlived the publish
				cancel()
			}
		}
		if pasting && strings.HasPrefix(line, "  ") {
			commands.WriteString(line + "\n")
		}
	}
	if err := <-ended; !got || after < 2 || err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("got %t, %d publishes after it: %v\n%s", got, after, err, said.String())
	}
}

// freePort returns a port of 127.0.0.1 that no program listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
