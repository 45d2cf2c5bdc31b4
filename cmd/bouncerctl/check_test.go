package main

import (
	"path/filepath"
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
