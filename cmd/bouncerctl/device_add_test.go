package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestDeviceAdd(t *testing.T) {
	dir := newDir(t)
	bundle := filepath.Join(dir, "devices", "sensor_001")
	got := device(t, dir, "add", "sensor_001")
	if want := "Registered sensor_001. Its bundle is in " + bundle + ":\n  ca.crt  device.crt  device.key  secret  device.json  README\n"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}

	for name, mode := range map[string]fs.FileMode{
		".": fs.ModeDir | 0o700, "ca.crt": 0o640, "device.crt": 0o640, "device.key": 0o600, "secret": 0o600, "README": 0o640,
	} {
		if info, err := os.Stat(filepath.Join(bundle, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	secret := readFile(t, filepath.Join(bundle, "secret"))
	if !regexp.MustCompile(`\A[0-9a-f]{64}\z`).MatchString(secret) {
		t.Errorf("secret %q", secret)
	}
	if in := storedSecret(t, dir, "sensor_001"); in != secret {
		t.Errorf("the bundle's secret is %q, the registry's %q", secret, in)
	}
	if strings.Contains(got+readFile(t, filepath.Join(bundle, "README")), secret) {
		t.Error("the secret is shown")
	}

	pair, err := tls.LoadX509KeyPair(filepath.Join(bundle, "device.crt"), filepath.Join(bundle, "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(bundle, "ca.crt"))))
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if pair.Leaf.Subject.CommonName != "sensor_001" {
		t.Errorf("common name %q", pair.Leaf.Subject.CommonName)
	}
	if want := "valid until " + pair.Leaf.NotAfter.Format(time.DateOnly); !strings.Contains(readFile(t, filepath.Join(bundle, "README")), want) {
		t.Errorf("%q is not in the README", want)
	}

	fail(t, 1, `device "sensor_001" is already registered; remove it first, or use another id`, deviceArgs(dir, "add", "sensor_001")...)
	if after := readFile(t, filepath.Join(bundle, "secret")); after != secret {
		t.Error("the second add changed the bundle")
	}
}

func TestDeviceAddGivenSecret(t *testing.T) {
	dir := newDir(t)
	file := filepath.Join(t.TempDir(), "secret")
	writeFile(t, file, "supersecretkey123\n")
	device(t, dir, "add", "from-file", "--secret-file", file)
	if got := bouncerctl(t, "p ä $\r\n", deviceArgs(dir, "add", "from:stdin", "--secret-file", "-")...); got.code != 0 {
		t.Fatal(got.stderr)
	}
	for id, want := range map[string]string{"from-file": "supersecretkey123", "from:stdin": "p ä $"} {
		if got := storedSecret(t, dir, id); got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
		if got := readFile(t, filepath.Join(dir, "devices", id, "secret")); got != want {
			t.Errorf("%s: %q in the bundle, want %q", id, got, want)
		}
	}

	for content, want := range map[string]string{
		"":                        "the secret in standard input is empty; put the secret there",
		"\n":                      "the secret in standard input is empty; put the secret there",
		"a\nb":                    "the secret in standard input is not one line of text; write its bytes as hexadecimal digits, and sign with those",
		"a\xff":                   "the secret in standard input is not one line of text; write its bytes as hexadecimal digits, and sign with those",
		strings.Repeat("a", 4097): "the secret in standard input is longer than 4096 bytes; use a shorter one",
	} {
		failReading(t, content, 1, want, deviceArgs(dir, "add", "other", "--secret-file", "-")...)
	}
	fail(t, 1, "--secret-file: open /nonexistent: no such file or directory", deviceArgs(dir, "add", "other", "--secret-file", "/nonexistent")...)
	if _, err := os.Stat(filepath.Join(dir, "devices", "other")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a bundle was left: %v", err)
	}
}

// TestDeviceAddNothingHalfDone: no bundle without a registration, no
// registration without a bundle.
func TestDeviceAddNothingHalfDone(t *testing.T) {
	dir := newDir(t)
	out := filepath.Join(t.TempDir(), "new", "bundle")
	addOut := deviceArgs(dir, "add", "sensor_001", "--out", out)

	// The database refuses.
	db := openDatabase(t, dir)
	if _, err := db.Exec("CREATE TRIGGER refuse BEFORE INSERT ON devices BEGIN SELECT RAISE(ABORT, 'no more'); END"); err != nil {
		t.Fatal(err)
	}
	got := bouncerctl(t, "", addOut...)
	if got.code != 1 || !strings.Contains(got.stderr, "no more") {
		t.Errorf("got %+v", got)
	}
	if _, err := os.Stat(filepath.Dir(out)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a bundle was left: %v", err)
	}
	if _, err := db.Exec("DROP TRIGGER refuse"); err != nil {
		t.Fatal(err)
	}

	// The bundle cannot be made.
	if err := os.MkdirAll(out, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(out, "mine"), "")
	fail(t, 1, out+" already exists; move it away, or name another directory with --out", addOut...)
	if got := listing(t, out); strings.Count(got, "\n") != 1 {
		t.Errorf("changed:\n%s", got)
	}
	if got := device(t, dir, "list", "--json"); got != "[]\n" {
		t.Errorf("registered all the same: %s", got)
	}

	// There is no CA, nor one that bouncer.toml names.
	settings, err := os.ReadFile(filepath.Join(dir, "bouncer.toml"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "bouncer.toml"), strings.Replace(string(settings), `issuers = ["pki/ca.crt"]`, "", 1))
	if err := os.Rename(filepath.Join(dir, "pki"), filepath.Join(dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	fail(t, 1, "there is no CA in "+dir+"/pki; use --no-cert if the device has a certificate of another CA", deviceArgs(dir, "add", "sensor_001")...)
	if got := device(t, dir, "list", "--json"); got != "[]\n" {
		t.Errorf("registered all the same: %s", got)
	}
	want := "Registered sensor_001. Its bundle is in " + dir + "/devices/sensor_001:\n  secret  device.json  README\n"
	if got := device(t, dir, "add", "sensor_001", "--no-cert"); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// TestBlanksAroundASecret: they are part of it, and that is said.
func TestBlanksAroundASecret(t *testing.T) {
	dir := newDir(t)
	file := filepath.Join(t.TempDir(), "secret")
	writeFile(t, file, "one \n")
	if got := device(t, dir, "add", "a", "--no-cert", "--secret-file", file); !strings.Contains(got, "begins or ends with a blank, which is part of it") || storedSecret(t, dir, "a") != "one " {
		t.Error(got)
	}
	writeFile(t, file, "id,secret\nb,one\nc, two\n")
	if got := device(t, dir, "import", file); strings.Count(got, "Note: the secret in ") != 1 || !strings.Contains(got, ":3 begins or ends with a blank") || storedSecret(t, dir, "c") != " two" {
		t.Error(got)
	}
}
