package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCheckNamesBundles: one cafile with several CAs lets each of them issue a device's certificate, unless issuers says which
// may.
func TestCheckNamesBundles(t *testing.T) {
	dir := newDir(t)
	ca, settings := filepath.Join(dir, "pki", "ca.crt"), filepath.Join(dir, "bouncer.toml")
	const line = "this file holds 2 CA certificates"
	writeFile(t, ca, readFile(t, ca)+readFile(t, ca))
	if got := bouncerctl(t, "", "check", filepath.Join(dir, "mosquitto.conf")); strings.Contains(got.stdout, line) {
		t.Errorf("warns though issuers is set: %s", got.stdout)
	}
	writeFile(t, settings, strings.Replace(readFile(t, settings), `issuers = ["pki/ca.crt"]`, "", 1))
	if got := bouncerctl(t, "", "check", filepath.Join(dir, "mosquitto.conf")); !strings.Contains(got.stdout, line) {
		t.Errorf("does not warn: %s%s", got.stdout, got.stderr)
	}
}

// TestCheckFleet: what is wrong in [fleet] is found without a connection.
func TestCheckFleet(t *testing.T) {
	dir := newDir(t)
	path := filepath.Join(dir, "bouncer.toml")
	text := readFile(t, path)
	fleet := func(settings string) {
		t.Helper()
		changed := strings.Replace(text, "\nservers = []", "\nservers = [\"tls://n1.invalid:4222\"]\n"+settings, 1)
		if changed == text {
			t.Fatal("no servers in bouncer.toml")
		}
		changed = regexp.MustCompile(`(?m)^url = .*`).ReplaceAllString(changed, "")
		writeFile(t, path, changed)
	}
	for settings, want := range map[string]string{
		"name = \"a\"\ndeliver = false\nreplicas = 1\n": ": warning: fleet.replicas: with 1, messages are lost or held up with one NATS server; use 3\n",
		"name = \"a\"\ndeliver = true\n":                ": error: fleet.deliver: this version does not deliver from the stream; write false, and have consumers read it\n",
	} {
		fleet(settings)
		if got := bouncerctl(t, "", "check", path); !strings.Contains(got.stdout, want) || strings.Count(got.stdout, "fleet.") != 1 {
			t.Errorf("%s\nfinds\n%swant %s", settings, got.stdout, want)
		}
	}
}
