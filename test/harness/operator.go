package harness

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/test/harness/broker"
)

// Reload sends SIGHUP and waits until bouncer.toml has been read.
func (g *Gateway) Reload(settings map[string]any) {
	g.Helper()
	g.Must(g.Broker.SetSettings(settings))
	mark := g.Broker.Log().Mark()
	g.Must(g.Broker.Process().Signal(syscall.SIGHUP))
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: bouncer.toml was reloaded"))
	g.Must(err)
}

// BuildBouncerctl builds bouncerctl into a directory of the test's, or takes the one that BOUNCERCTL names: where there is no Go.
func BuildBouncerctl(t *testing.T) string {
	t.Helper()
	if program := os.Getenv("BOUNCERCTL"); program != "" {
		return program
	}
	program := filepath.Join(t.TempDir(), "bouncerctl")
	if output, err := exec.Command("go", "build", "-o", program, "mosquitto-bouncer/cmd/bouncerctl").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	return program
}

// Bouncerctl runs bouncerctl on the gateway's registry; it must succeed.
func (g *Gateway) Bouncerctl(program string, args ...string) string {
	g.Helper()
	cmd := exec.Command(program, append(args, "--config", g.Broker.Path("bouncer.toml"))...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		g.Fatalf("bouncerctl %q: %v\n%s", args, err, stderr.String())
	}
	return stdout.String()
}

// CompilePlugin makes a plugin of its own from C source, against the installed headers. With BOUNCER_PROBES it takes name.so of
// that directory instead, if it is there, and else leaves what it made there: where the broker is tried in a container,
// that has no compiler, and a plugin is to be one and the same for all releases.
func CompilePlugin(t *testing.T, name, source string) []byte {
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

// Disable disables or enables a device, and waits until that is in force.
func (g *Gateway) Disable(id string, disabled bool) {
	g.Helper()
	mark := g.Broker.Log().Mark()
	g.SetDisabled(id, disabled)
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed "))
	g.Must(err)
}

// SetDisabled disables a registered device or enables it again.
func (g *Gateway) SetDisabled(id string, disabled bool) {
	g.Helper()
	store, err := registry.OpenStore(g.Broker.Path("devices.db"))
	g.Must(err)
	defer func() { g.Must(store.Close()) }()
	g.Must(store.SetDisabled(g.Limit(), id, disabled))
}
