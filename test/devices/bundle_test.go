package devices

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

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
)

// TestBundleExample: the Python program in the README of a bundle, as "bouncerctl device add" makes it, publishes from the directory
// of the bundle to the broker that "bouncerctl init" has set up: with a secret, and with the key of the certificate.
func TestBundleExample(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	back := backend.Start(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	top, err := os.MkdirTemp("", "bundle") // not that of the test, which the broker's account cannot enter
	must(err)
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	must(os.Chmod(top, 0o755))
	dir := filepath.Join(top, "site")
	bouncerctl := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Fatalf("bouncerctl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	library, err := broker.FindPlugin()
	must(err)
	text, err := os.ReadFile(library)
	must(err)
	plugin := filepath.Join(top, "mosquitto_bouncer.so")
	must(os.WriteFile(plugin, text, 0o755))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	port := listener.Addr().(*net.TCPAddr).Port
	must(listener.Close())

	bouncerctl("init", "--dir", dir, "--plugin", plugin, "--port", strconv.Itoa(port), "--host", "127.0.0.1", "--backend", back.URL())
	config := filepath.Join(dir, "bouncer.toml")
	bouncerctl("device", "add", "with_secret", "--config", config)
	bouncerctl("device", "add", "with_key", "--config", config, "--sign-with-certificate")
	binary, err := broker.Find()
	must(err)
	credential, err := broker.Account()
	must(err)
	process, err := broker.Command{Binary: binary, Config: filepath.Join(dir, "mosquitto.conf"), Credential: credential, Log: &broker.Log{}}.Start()
	must(err)
	t.Cleanup(func() { _ = process.Kill() })
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	must(process.Ready(ctx))

	python, err := filepath.Abs(source + "python/src")
	must(err)
	for _, id := range []string{"with_secret", "with_key"} {
		bundle := filepath.Join(dir, "devices", id)
		readme, err := os.ReadFile(filepath.Join(bundle, "README"))
		must(err)
		_, after, _ := strings.Cut(string(readme), "PYTHONPATH=device/python/src of the source:\n\n")
		sample, _, found := strings.Cut(after, "\n\nWithout a library")
		if !found {
			t.Fatalf("no program in the README:\n%s", readme)
		}
		var lines strings.Builder
		for line := range strings.Lines(sample) {
			lines.WriteString(strings.TrimPrefix(line, "    "))
		}
		limit, cancel := context.WithTimeout(t.Context(), time.Minute)
		run := exec.CommandContext(limit, "/usr/bin/python3", "-c", lines.String())
		run.Dir = bundle
		run.Env = append(os.Environ(), "PYTHONPATH="+python, "PYTHONDONTWRITEBYTECODE=1")
		out, err := run.CombinedOutput()
		cancel()
		if err != nil || string(out) != "accepted\n" {
			t.Errorf("%s: %v\n%s", id, err, out)
		}
	}
}
