package main

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newDir is a directory made by init.
func newDir(t *testing.T, args ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a dir") // mosquitto.conf has no quotes
	succeed(t, append([]string{"init", "--dir", dir, "--plugin", fakePlugin(t)}, args...)...)
	return dir
}

func deviceArgs(dir, verb string, args ...string) []string {
	return append([]string{"device", verb, "--config", filepath.Join(dir, "bouncer.toml")}, args...)
}

// device runs a device command, which must succeed.
func device(t *testing.T, dir, verb string, args ...string) string {
	t.Helper()
	return succeed(t, deviceArgs(dir, verb, args...)...)
}

func openDatabase(t *testing.T, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(dir, "devices.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// storedSecret is the HMAC key as the registry has it.
func storedSecret(t *testing.T, dir, id string) (secret string) {
	t.Helper()
	if err := openDatabase(t, dir).QueryRow("SELECT shared_secret FROM devices WHERE device_id = ?", id).Scan(&secret); err != nil {
		t.Fatal(err)
	}
	return secret
}

func requireTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// waitFor waits for a condition, and fails the test when it does not come.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatal("timed out")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// fakePlugin is a file that init takes for the plugin, which it does not load.
func fakePlugin(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), pluginFile)
	writeFile(t, path, "")
	return path
}

// listing is everything below dir with modes, sizes and times.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %s %d %s\n", path, info.Mode(), info.Size(), info.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// result is what a run of the program came to.
type result struct {
	code           int
	stdout, stderr string
}

func bouncerctl(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// succeed runs the program and returns its output.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	got := bouncerctl(t, "", args...)
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("bouncerctl %q: exit code %d, %s", args, got.code, got.stderr)
	}
	return got.stdout
}

// fail runs the program, which must say want on standard error and nothing
// else.
func fail(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	failReading(t, "", code, want, args...)
}

func failReading(t *testing.T, stdin string, code int, want string, args ...string) {
	t.Helper()
	got := bouncerctl(t, stdin, args...)
	if (got != result{code, "", "bouncerctl: " + want + "\n"}) {
		t.Errorf("bouncerctl %q: exit code %d, output %q,\n got %swant bouncerctl: %s", args, got.code, got.stdout, got.stderr, want)
	}
}
