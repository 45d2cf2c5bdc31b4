package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/commandkey"
)

// TestCommandKey: init makes keys; they are listed, exported and rotated, with the file's mode as it was; the public halves of the device's
// own algorithm are in its bundle; make refuses to overwrite; nothing printed is private.
func TestCommandKey(t *testing.T) {
	dir := newDir(t)
	config := filepath.Join(dir, "bouncer.toml")
	file := filepath.Join(dir, "command-keys.toml")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	ctl := func(args ...string) string {
		t.Helper()
		return succeed(t, append(append([]string{"command-key"}, args...), "--config", config)...)
	}
	keys := func() *commandkey.Set {
		t.Helper()
		set, err := commandkey.Parse([]byte(readFile(t, file)))
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	first := keys()
	if len(first.Keys()) != 2 {
		t.Fatalf("%d keys", len(first.Keys()))
	}
	printed := ctl("list") + ctl("list", "--json") + ctl("export")
	var listed []struct {
		Algorithm, Fingerprint string
		Signs                  bool
	}
	if err := json.Unmarshal([]byte(ctl("list", "--json")), &listed); err != nil || len(listed) != 2 || !listed[0].Signs || listed[0].Fingerprint != first.Keys()[0].Public().Fingerprint().String() {
		t.Errorf("%v, %+v", err, listed)
	}
	printed += ctl("rotate", "--overlap", "60d", "--algorithm", "p256")
	second := keys()
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || len(second.Keys()) != 3 {
		t.Errorf("%v, %d keys, %v", info.Mode(), len(second.Keys()), err)
	}
	if got := ctl("list"); strings.Count(got, "now") != 2 || strings.Count(got, "from 20") != 1 {
		t.Error(got)
	}

	ed := newKeyPair(t, "Ed25519")
	p := newKeyPair(t, "ECDSA P-256")
	device(t, dir, "add", "ed", "--key", ed.public)
	device(t, dir, "add", "p", "--csr", p.csr, "--sign-with-certificate")
	for id, n := range map[string]int{"ed": 1, "p": 2} {
		bundle := filepath.Join(dir, "devices", id)
		text := readFile(t, filepath.Join(bundle, "command-keys.pem"))
		var described struct {
			Algorithm   string `json:"algorithm"`
			CommandKeys string `json:"command_keys"`
			SigningKey  string `json:"signing_key"`
			Secret      string
			Topics      map[string]string
		}
		if err := json.Unmarshal([]byte(readFile(t, filepath.Join(bundle, "device.json"))), &described); err != nil {
			t.Error(err)
		}
		if strings.Count(text, "BEGIN PUBLIC KEY") != n || described.CommandKeys != "command-keys.pem" || described.Secret != "" ||
			described.SigningKey != map[string]string{"ed": "signing.key", "p": "device.key"}[id] || described.Topics["rejected"] != "device/"+id+"/rejected" {
			t.Errorf("%s: %d keys, %+v", id, strings.Count(text, "BEGIN PUBLIC KEY"), described)
		}
	}
	if got := ctl("export", "--algorithm", "p256"); got != readFile(t, filepath.Join(dir, "devices", "p", "command-keys.pem")) {
		t.Error(got)
	}
	printed += ctl("rotate", "--now")
	third := keys()
	if len(third.Keys()) != 2 || len(third.Valid("Ed25519", third.Keys()[0].From)) != 1 || third.Keys()[0].Public().Equal(first.Keys()[0].Public()) {
		t.Errorf("%d keys after --now", len(third.Keys()))
	}
	if got := device(t, dir, "renew", "p", "--csr", newKeyPair(t, "ECDSA P-256").csr); !strings.Contains(got, "command-keys.pem  device.json") {
		t.Error(got)
	}
	for line := range strings.Lines(readFile(t, file)) {
		if key, found := strings.CutPrefix(line, "private_key = "); found && strings.Contains(printed, strings.Trim(key, "'\"\n")[20:60]) {
			t.Error("a private key was printed")
		}
	}

	fail(t, exitFailure, file+" already exists; keys are never overwritten, name another file, or replace them with bouncerctl command-key rotate", "command-key", "make", file, "--config", config)
	fail(t, exitUsage, "--now and --overlap exclude each other; see bouncerctl command-key rotate --help", "command-key", "rotate", "--now", "--overlap", "1d", "--config", config)
	fail(t, exitUsage, "--algorithm \"rsa\" is not ed25519 or p256; see bouncerctl command-key rotate --help", "command-key", "rotate", "--algorithm", "rsa", "--config", config)
	made := filepath.Join(t.TempDir(), "keys.toml")
	if got := ctl("make", made); !strings.Contains(got, `keys_file = "`+made+`"`) {
		t.Error(got)
	}
	if info, err := os.Stat(made); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	// Of an algorithm without a key one is made as the error says, which leaves the other algorithm's as it is.
	now := third.Keys()[0].From
	one, err := (*commandkey.Set)(nil).With(now, now, "Ed25519")
	if err != nil {
		t.Fatal(err)
	}
	text, err := one.Encode()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, string(text))
	fail(t, exitFailure, "there is no such key; make one with bouncerctl command-key rotate --algorithm p256", "command-key", "export", "--algorithm", "p256", "--config", config)
	if got := device(t, dir, "add", "early", "--key", newKeyPair(t, "ECDSA P-256").public); !strings.Contains(got, "command-key rotate --algorithm p256") {
		t.Error(got)
	}
	ctl("rotate", "--algorithm", "p256")
	if got := keys().Keys(); len(got) != 2 || !got[0].Public().Equal(one.Keys()[0].Public()) || !strings.Contains(ctl("export", "--algorithm", "p256"), got[1].Public().Text()[:64]) {
		t.Errorf("%d keys", len(got))
	}

	// Without keys the command says what to do, and a bundle has none.
	without := strings.Replace(readFile(t, config), "keys_file = \"command-keys.toml\"", "keys_file = \"\"", 1)
	writeFile(t, config, without)
	fail(t, exitFailure, "command.keys_file is not set in "+config+"; make keys with bouncerctl command-key make FILE"+elsewhere(config), "command-key", "list", "--config", config)
	if got := device(t, dir, "add", "none", "--key", newKeyPair(t, "Ed25519").public); strings.Contains(got, "command-keys.pem") || !strings.Contains(got, "command-key make") {
		t.Error(got)
	}
}
