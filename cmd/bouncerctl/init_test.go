package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/pki"
)

var update = flag.Bool("update", false, "write the example files again")

func TestInit(t *testing.T) {
	plugin := fakePlugin(t)
	dir := filepath.Join(t.TempDir(), "not yet", "there")
	output := succeed(t, "init", "--dir", dir, "--plugin", plugin, "--port", "18883",
		"--host", "broker.example", "--host", "192.0.2.7", "--backend", "https://backend.example/{device_id}")
	quoted := "'" + dir + "/%s'"
	for _, want := range []string{
		"Made in " + dir + ":\n",
		"TLS on port 18883",
		"for broker.example, 192.0.2.7\n",
		"The backend is https://backend.example/{device_id};",
		fmt.Sprintf("bouncerctl device add sensor_001 --config "+quoted+"\n", "bouncer.toml"),
		fmt.Sprintf("mosquitto -c "+quoted+"\n", "mosquitto.conf"),
	} {
		if !strings.Contains(output, want) {
			t.Errorf("%q is not in:\n%s", want, output)
		}
	}

	root := os.Geteuid() == 0
	broker, err := files.BrokerAccount()
	if err != nil {
		t.Fatal(err)
	}
	// To the broker belongs what it writes. The rest it may read, by its group, but for the CA's key.
	for name, want := range map[string]struct {
		mode       fs.FileMode
		owns, read bool
	}{
		".":              {fs.ModeDir | 0o750, false, true},
		"mosquitto.conf": {0o640, false, true},
		"bouncer.toml":   {0o640, false, true},
		"devices.db":     {0o640, false, true},
		"state":          {fs.ModeDir | 0o750, true, true},
		"broker":         {fs.ModeDir | 0o750, true, true},
		"pki":            {fs.ModeDir | 0o750, false, true},
		"pki/ca.crt":     {0o640, false, true},
		"pki/ca.key":     {0o600, false, false},
		"pki/server.crt": {0o640, false, true},
		"pki/server.key": {0o640, false, true},
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != want.mode {
			t.Errorf("%s has mode %s, want %s", name, info.Mode(), want.mode)
		}
		stat := info.Sys().(*syscall.Stat_t)
		owner, group := os.Geteuid(), os.Getegid()
		if root && broker != nil {
			if want.owns {
				owner = broker.UID
			}
			if want.read {
				group = broker.GID
			}
		}
		if int(stat.Uid) != owner || int(stat.Gid) != group {
			t.Errorf("%s belongs to %d:%d, want %d:%d", name, stat.Uid, stat.Gid, owner, group)
		}
	}

	cfg, err := config.Load(filepath.Join(dir, "bouncer.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Database != filepath.Join(dir, "devices.db") || cfg.StateDir != filepath.Join(dir, "state") || cfg.Backend.URL != "https://backend.example/{device_id}" {
		t.Errorf("settings %+v", cfg)
	}
	conf := readFile(t, filepath.Join(dir, "mosquitto.conf"))
	for _, line := range []string{
		"listener 18883",
		"persistence_location " + dir + "/broker/",
		"cafile " + dir + "/pki/ca.crt",
		"certfile " + dir + "/pki/server.crt",
		"keyfile " + dir + "/pki/server.key",
		"plugin " + plugin,
		"plugin_opt_config_file " + dir + "/bouncer.toml",
	} {
		if !strings.Contains(conf, "\n"+line+"\n") {
			t.Errorf("no line %q in mosquitto.conf", line)
		}
	}

	if _, err := pki.LoadCA([]byte(readFile(t, filepath.Join(dir, "pki/ca.crt"))), []byte(readFile(t, filepath.Join(dir, "pki/ca.key")))); err != nil {
		t.Error(err)
	}
	cert := serverCertificate(t, dir)
	if strings.Join(cert.DNSNames, " ") != "broker.example" || len(cert.IPAddresses) != 1 || !cert.IPAddresses[0].Equal(net.IPv4(192, 0, 2, 7)) {
		t.Errorf("the server's names are %q and %s", cert.DNSNames, cert.IPAddresses)
	}
	if days := time.Until(cert.NotAfter).Hours() / 24; days < 824 || days > 825 {
		t.Errorf("the server's certificate is good for %.0f days", days)
	}
	if got := succeed(t, "device", "list", "--config", filepath.Join(dir, "bouncer.toml")); got != "ID   REGISTERED   STATE   CERTIFICATE UNTIL\n" {
		t.Errorf("devices:\n%s", got)
	}
}

// TestInitDefaultNames: without --host the certificate is for this machine.
func TestInitDefaultNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	succeed(t, "init", "--dir", dir, "--plugin", fakePlugin(t))
	cert := serverCertificate(t, dir)
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	for _, name := range names {
		if err := cert.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

func TestInitNeverOverwrites(t *testing.T) {
	plugin := fakePlugin(t)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "bouncer.toml"), "mine")
	if err := os.Mkdir(filepath.Join(dir, "pki"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "pki/ca.key")); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	fail(t, 1, dir+" already has bouncer.toml, pki/ca.key; use another directory, or move them away",
		"init", "--dir", dir, "--plugin", plugin)
	if after := listing(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	// A second init of the same directory.
	dir = filepath.Join(t.TempDir(), "d")
	succeed(t, "init", "--dir", dir, "--plugin", plugin)
	before = listing(t, dir)
	fail(t, 1, dir+" already has mosquitto.conf, bouncer.toml, devices.db, command-keys.toml, pki/ca.crt, pki/ca.key, pki/server.crt, pki/server.key; use another directory, or move them away",
		"init", "--dir", dir, "--plugin", plugin)
	if after := listing(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestInitLeavesNothing: what fails half-way leaves no trace.
func TestInitLeavesNothing(t *testing.T) {
	plugin := fakePlugin(t)
	parent := t.TempDir()
	dir := filepath.Join(parent, "a", "b")
	const problem = `2048 bytes; use a shorter URL`
	got := bouncerctl(t, "", "init", "--dir", dir, "--plugin", plugin, "--backend", "http://h/"+strings.Repeat("a", 2048))
	if got.code != 1 || !strings.HasPrefix(got.stderr, "bouncerctl: "+dir+"/bouncer.toml:") || !strings.Contains(got.stderr, problem) || got.stdout != "" {
		t.Errorf("got %+v", got)
	}
	if after := listing(t, parent); after != "" {
		t.Errorf("left behind:\n%s", after)
	}

	// A file where a directory is needed.
	dir = t.TempDir()
	writeFile(t, filepath.Join(dir, "state"), "mine")
	before := listing(t, dir)
	fail(t, 1, "mkdir "+dir+"/state: file exists", "init", "--dir", dir, "--plugin", plugin)
	if after := listing(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestInitPlugin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	missing := filepath.Join(t.TempDir(), "missing.so")
	fail(t, 1, "there is no plugin file "+missing+"; name an existing one with --plugin", "init", "--dir", dir, "--plugin", missing)
	fail(t, 1, `mosquitto.conf cannot hold the path "`+dir+`\n"; use one without control characters and blanks at its end`,
		"init", "--dir", dir+"\n", "--plugin", fakePlugin(t))

	// The plugin in the program's directory is found.
	beside := filepath.Join(filepath.Dir(program), pluginFile)
	writeFile(t, beside, "")
	defer os.Remove(beside)
	succeed(t, "init", "--dir", dir)
	if conf := readFile(t, filepath.Join(dir, "mosquitto.conf")); !strings.Contains(conf, "\nplugin "+beside+"\n") {
		t.Errorf("%s is not in:\n%s", beside, conf)
	}
}

func serverCertificate(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "pki/server.crt"), filepath.Join(dir, "pki/server.key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

// TestInitOpenDirectory: where every user may replace files, no CA is made.
func TestInitOpenDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "site")
	pki := filepath.Join(dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(pki, 0o777); err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(t.TempDir(), "mosquitto_bouncer.so")
	writeFile(t, plugin, "")
	fail(t, 1, "every user may replace what is in "+pki+" (mode 0777); run: chmod o-w "+pki, "init", "--dir", dir, "--plugin", plugin)
	if entries, err := os.ReadDir(pki); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}
