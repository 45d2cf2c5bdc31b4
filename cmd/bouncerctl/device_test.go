package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"mosquitto-bouncer/cmd/bouncerctl/files"
)

func TestDeviceAdd(t *testing.T) {
	dir := newDir(t)
	bundle := filepath.Join(dir, "devices", "sensor_001")
	got := device(t, dir, "add", "sensor_001")
	if want := "Registered sensor_001. Its bundle is in " + bundle + ":\n  ca.crt  device.crt  device.key  secret  README\n"; got != want {
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
	want := "Registered sensor_001. Its bundle is in " + dir + "/devices/sensor_001:\n  secret  README\n"
	if got := device(t, dir, "add", "sensor_001", "--no-cert"); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestDeviceLife(t *testing.T) {
	dir := newDir(t)
	device(t, dir, "add", "b")
	device(t, dir, "add", "a-longer-id")
	db := openDatabase(t, dir)
	if _, err := db.Exec(`UPDATE devices SET created_at = 1727712000 WHERE device_id = 'b'`); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO devices VALUES ('bad id', 'x', 1727712001)`); err != nil {
		t.Fatal(err)
	}

	if got := device(t, dir, "disable", "b"); got != "Disabled b.\n" {
		t.Errorf("got %q", got)
	}
	list := regexp.MustCompile(`\AID            REGISTERED             STATE        CERTIFICATE UNTIL
a-longer-id   \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ   enabled      \d{4}-\d\d-\d\d
b             2024-09-30T16:00:00Z   disabled     \d{4}-\d\d-\d\d
"bad id"      2024-09-30T16:00:01Z   invalid id   -
\z`)
	if got := device(t, dir, "list"); !list.MatchString(got) {
		t.Errorf("got:\n%s", got)
	}
	var devices []struct {
		ID        string     `json:"id"`
		CreatedAt *time.Time `json:"created_at"`
		Disabled  bool       `json:"disabled"`
	}
	if err := json.Unmarshal([]byte(device(t, dir, "list", "--json")), &devices); err != nil {
		t.Fatal(err)
	}
	if len(devices) != 3 || devices[0].ID != "a-longer-id" || devices[0].Disabled || time.Since(*devices[0].CreatedAt) > time.Minute ||
		devices[1].ID != "b" || !devices[1].Disabled || devices[1].CreatedAt.Unix() != 1727712000 {
		t.Errorf("got %+v", devices)
	}

	if got := device(t, dir, "enable", "b"); got != "Enabled b.\n" {
		t.Errorf("got %q", got)
	}
	if got := device(t, dir, "remove", "a-longer-id"); got != "Removed a-longer-id. Its certificate still connects; to shut out a lost device, disable it instead.\n" {
		t.Errorf("got %q", got)
	}
	if got := device(t, dir, "remove", "bad id"); got != "Removed bad id. Its certificate still connects; to shut out a lost device, disable it instead.\n" {
		t.Errorf("got %q", got)
	}
	only := regexp.MustCompile(`\A\[\n\{"id":"b","created_at":"2024-09-30T16:00:00Z","disabled":false,"secret_since":"2024-09-30T16:00:00Z","old_secrets":0,"certificate_expires":"[^"]*"\}\n\]\n\z`)
	if got := device(t, dir, "list", "--json"); !only.MatchString(got) {
		t.Errorf("got %q", got)
	}
	for _, verb := range []string{"remove", "disable", "enable"} {
		fail(t, 1, `device "a-longer-id" is not registered; see bouncerctl device list`, deviceArgs(dir, verb, "a-longer-id")...)
	}
}

func TestDeviceConfig(t *testing.T) {
	fail(t, 1, "/nonexistent/b.toml: cannot be read: no such file or directory; name an existing file, or create one with bouncerctl init",
		"device", "list", "--config", "/nonexistent/b.toml")
	dir := t.TempDir()
	file := filepath.Join(dir, "bouncer.toml")
	writeFile(t, file, "databse = \"x\"\n")
	fail(t, 1, file+":1: databse: unknown key; did you mean database?", "device", "list", "--config", file)

	// A database that is not there is made by add alone.
	writeFile(t, file, "database = \"new.db\"\n")
	fail(t, 1, "there is no device database "+dir+"/new.db; register a device with bouncerctl device add, or correct database in bouncer.toml",
		"device", "list", "--config", file)
	succeed(t, "device", "add", "a", "--no-cert", "--config", file)
	if info, err := os.Stat(filepath.Join(dir, "new.db")); err != nil || info.Mode() != 0o640 {
		t.Errorf("new.db: %v, %v", info, err)
	}
	writeFile(t, file, "database = \"none/new.db\"\n")
	fail(t, 1, "making the device database: open "+dir+"/none/new.db: no such file or directory; make its directory, or correct database in bouncer.toml",
		"device", "add", "a", "--no-cert", "--config", file)
}

// TestReadmeSnippet: what the README says to paste into a shell publishes an
// envelope whose signature is right.
func TestReadmeSnippet(t *testing.T) {
	requireTools(t, "python3")
	dir := newDir(t, "--port", "18883", "--host", "broker.example")
	for id, secret := range map[string]string{
		"sensor_001": "",
		"a:b.c-d":    "-x 'quoted' \"$HOME\" `id` \\ ä%s",
	} {
		args := deviceArgs(dir, "add", id)
		if secret != "" {
			args = append(args, "--secret-file", "-")
		}
		if got := bouncerctl(t, secret, args...); got.code != 0 {
			t.Fatal(got.stderr)
		}
		bundle := filepath.Join(dir, "devices", id)

		// Instead of mosquitto_pub, something that shows how it is called.
		bin := t.TempDir()
		recorded := filepath.Join(bin, "recorded")
		stub := "#!/bin/sh\necho \"$@\" >" + recorded + ".args\ncat >" + recorded + ".stdin\n"
		if err := os.WriteFile(filepath.Join(bin, "mosquitto_pub"), []byte(stub), 0o755); err != nil {
			t.Fatal(err)
		}
		sh := exec.Command("sh", "-eu")
		sh.Dir = bundle
		sh.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		sh.Stdin = strings.NewReader(snippet(t, bundle))
		if output, err := sh.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		if got, want := readFile(t, recorded+".args"), "-h broker.example -p 18883 -V 5 -q 1 -t device/"+id+"/data -s --cafile ca.crt --cert device.crt --key device.key\n"; got != want {
			t.Errorf("mosquitto_pub %s, want %s", got, want)
		}
		checkEnvelope(t, readFile(t, recorded+".stdin"), id, readFile(t, filepath.Join(bundle, "secret")))
	}
}

// checkEnvelope verifies a message as docs/envelope.md describes, with the
// payload signed as it was sent.
func checkEnvelope(t *testing.T, message, id, secret string) {
	t.Helper()
	m := regexp.MustCompile(`\A\{"device_id":"([^"]*)","timestamp":(\d+),"message_id":"([0-9a-f-]{36})","payload":(.*),"signature":"([0-9a-f]{64})"\}\z`).FindStringSubmatch(message)
	if m == nil || m[1] != id || !json.Valid([]byte(message)) {
		t.Fatalf("not an envelope of %s: %s", id, message)
	}
	if seconds, err := strconv.ParseInt(m[2], 10, 64); err != nil || time.Since(time.Unix(seconds, 0)).Abs() > time.Minute {
		t.Errorf("timestamp %s", m[2])
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(m[1] + m[2] + m[3] + m[4]))
	if want := hex.EncodeToString(mac.Sum(nil)); m[5] != want {
		t.Errorf("signature %s, want %s: %s", m[5], want, message)
	}
}

// TestWithMosquitto: the real broker takes the configuration, the certificates
// and the README's commands, all but the plugin.
func TestWithMosquitto(t *testing.T) {
	requireTools(t, "mosquitto", "mosquitto_pub", "mosquitto_sub", "python3")
	port := freePort(t)
	dir := newDir(t, "--port", strconv.Itoa(port))
	device(t, dir, "add", "sensor_001")
	device(t, dir, "add", "stranger")
	bundle := filepath.Join(dir, "devices", "sensor_001")

	conf := filepath.Join(dir, "mosquitto.conf")
	content := regexp.MustCompile(`(?m)^plugin.*\n`).ReplaceAllString(readFile(t, conf), "")
	writeFile(t, conf, content)
	account, err := files.BrokerAccount()
	if err != nil {
		t.Fatal(err)
	}
	if barrier := account.Barrier(conf); barrier != "" {
		t.Logf("run as root, because user %s cannot enter %s", files.BrokerUser, barrier)
		writeFile(t, conf, content+"user root\n")
	}
	var log bytes.Buffer
	broker := exec.Command("mosquitto", "-c", conf)
	broker.Dir = "/"
	broker.Stdout, broker.Stderr = &log, &log
	if err := broker.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = broker.Process.Signal(syscall.SIGTERM)
		if err := broker.Wait(); err != nil || t.Failed() {
			t.Errorf("broker: %v\n%s", err, log.String())
		}
	}()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	waitFor(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})

	// A subscriber is told of a retained message whenever it comes.
	publish := strings.Replace(snippet(t, bundle), " -s ", " -r -s ", 1)
	for _, shell := range []struct{ name, commands string }{
		{"publish", publish},
		{"subscribe", "mosquitto_sub -h localhost -p " + strconv.Itoa(port) + " -t device/sensor_001/data -C 1 -W 10 --cafile ca.crt --cert device.crt --key device.key"},
	} {
		sh := exec.Command("sh", "-eu")
		sh.Dir = bundle
		sh.Stdin = strings.NewReader(shell.commands)
		output, err := sh.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", shell.name, err, output)
		}
		if shell.name == "subscribe" {
			checkEnvelope(t, strings.TrimSuffix(string(output), "\n"), "sensor_001", readFile(t, filepath.Join(bundle, "secret")))
		} else if len(output) != 0 {
			t.Errorf("%s: %s", shell.name, output)
		}
	}
	for name, args := range map[string][]string{
		"no certificate":           {},
		"another's key":            {"--cert", "device.crt", "--key", filepath.Join(dir, "devices/stranger/device.key")},
		"the server's certificate": {"--cert", filepath.Join(dir, "pki/server.crt"), "--key", filepath.Join(dir, "pki/server.key")},
	} {
		cmd := exec.Command("mosquitto_pub", append([]string{"-h", "localhost", "-p", strconv.Itoa(port), "--cafile", "ca.crt", "-t", "x", "-m", "x", "-q", "1"}, args...)...)
		cmd.Dir = bundle
		if output, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%s: let in\n%s", name, output)
		}
	}

	pair, err := tls.LoadX509KeyPair(filepath.Join(bundle, "device.crt"), filepath.Join(bundle, "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(bundle, "ca.crt"))))
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", address, &tls.Config{
			Certificates: []tls.Certificate{pair},
			RootCAs:      roots,
			MinVersion:   version,
			MaxVersion:   version,
		})
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

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

// snippet is the commands that the README of a bundle says to paste.
func snippet(t *testing.T, bundle string) string {
	t.Helper()
	_, after, _ := strings.Cut(readFile(t, filepath.Join(bundle, "README")), "paste all lines at once:\n\n")
	commands, _, found := strings.Cut(after, "\n\n")
	if !found {
		t.Fatal("no snippet in the README")
	}
	return commands + "\n"
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

// TestWhatIsNoID: what another program has registered leads to no file elsewhere, and neither a terminal nor a spreadsheet
// obeys it.
func TestWhatIsNoID(t *testing.T) {
	dir := newDir(t)
	db, err := sql.Open("sqlite3", filepath.Join(dir, "devices.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const red = "\x1b[31mred\u009b"
	for _, id := range []string{"../../away", red, "=1+1"} {
		if _, err := db.Exec("INSERT INTO devices VALUES (?, 'secret', 1)", id); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "bouncer.toml")
	for _, verb := range []string{"rotate", "renew"} {
		fail(t, 1, `"../../away" is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -); remove it, and register the device by another`,
			"device", verb, "../../away", "--config", config)
	}
	if found, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "away*")); len(found) > 0 {
		t.Error(found)
	}
	for _, args := range [][]string{{"list"}, {"list", "--json"}, {"list", "--csv"}, {"show", red}, {"show", red, "--json"},
		{"disable", red}, {"unpin", red}, {"remove", red}} {
		got := device(t, dir, args[0], args[1:]...)
		if strings.ContainsAny(got, "\x1b\u009b") || strings.Contains("\n"+got, "\n=") {
			t.Errorf("%q: %q", args, got)
		}
		if args[len(args)-1] == "--json" && !json.Valid([]byte(got)) {
			t.Errorf("%q: %s", args, got)
		}
	}
}
