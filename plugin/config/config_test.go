package config

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/secret"
)

func TestDefaults(t *testing.T) {
	for _, source := range []string{"", "# nothing\n", "[publish]\n[backend]\n[journal]\n[http]\n"} {
		got, err := parse("bouncer.toml", "/etc/b", []byte(source))
		if err != nil {
			t.Fatalf("%q: %v", source, err)
		}
		want := &Config{
			StateDir: "/var/lib/mosquitto-bouncer",
			Database: "/var/lib/mosquitto-bouncer/devices.db",
			Publish: Publish{
				Topics:    []string{"device/+/data"},
				Tolerance: 5 * time.Minute,
				MaxBytes:  65536,

				MaxBadSignatures: 60,
			},
			Backend: Backend{
				URL:         "http://localhost:5000/device/{device_id}/data",
				Timeout:     5 * time.Second,
				Batch:       1,
				Linger:      20 * time.Millisecond,
				Concurrency: 64,
				MaxAge:      72 * time.Hour,
				Order:       OrderDevice,
			},
			Fleet:    Fleet{Prefix: "bouncer", Partitions: 16, Replicas: 3, Dedup: 20 * time.Minute, MaxBytes: 20 << 30},
			Response: Response{Topic: "device/{device_id}/response", MaxAge: time.Hour},
			Command:  Command{Topic: "device/{device_id}/command"},
			ACL:      ACL{Others: OthersAuto, UnknownCertificates: UnknownOthers},
			Journal:  Journal{MaxBytes: 1 << 30, Sync: 100 * time.Millisecond, DeviceShare: 0.25},
			Audit:    Audit{MaxBytes: 64 << 20, Keep: 8},

			DeadLetters: DeadLetters{MaxBytes: 1 << 30, DeviceShare: 0.1, AtLimit: AtLimitStop},
		}
		got.file, got.lines = "", nil // TestWhere's business
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v\nwant %+v", source, got, want)
		}
	}
}

func TestEverySetting(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t)
	write(t, dir, "cert.pem", cert, 0o644)
	write(t, dir, "key.pem", key, 0o640)
	write(t, dir, "token", []byte("backend-token\n"), 0o640)
	write(t, dir, "signing", []byte("whsec_x\r\n"), 0o600)
	write(t, dir, "http-token", []byte("http-token"), 0o600)
	keys, err := (*commandkey.Set)(nil).With(time.Now(), time.Now(), commandkey.Algorithms()...)
	if err != nil {
		t.Fatal(err)
	}
	text, err := keys.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "command-keys", text, 0o640)
	const source = `
state_dir = "state"
database  = "../devices.db"

[publish]
topics    = ["device/+/data", "site/7/+/up"]
tolerance = "90s"
max_bytes = "4KiB"
rate      = 2.5
burst     = 10
max_bad_signatures = 5

[backend]
url          = "https://backend.example:8443/in/{device_id}?v=1"
timeout      = "1.5s"
concurrency  = 8
max_age      = "24h"
bearer_token_file   = "token"
signing_secret_file = "signing"
order          = "none"
fatal_statuses = [501, 404]
ca_file   = "cert.pem"
cert_file = "cert.pem"
key_file  = "key.pem"

[response]
topic   = ""
max_age = "10m"
wrap    = true

[dead_letters]
max_bytes    = "2GiB"
device_share = 0.25
at_limit     = "drop-oldest"

[command]
topic = "to/{device_id}"
keys_file = "command-keys"

[rejected]
topic = "device/{device_id}/rejected"

[acl]
unknown_certificates = "deny"
certificates = ["dashboard", "Größe 1"]
others = "defer"

[journal]
max_bytes = "500MB"
device_share = 0.5
sync      = "always"

[http]
listen     = "[::]:8080"
token_file = "http-token"
cert_file  = "cert.pem"
key_file   = "key.pem"

[registry]
key_file = "registry-key"

[audit]
file      = "audit.jsonl"
max_bytes = "1MiB"
keep      = 3
`
	registryKey := strings.Repeat("0aB", 21) + "f"
	write(t, dir, "registry-key", []byte(registryKey+"\n"), 0o640)
	got, err := parse("bouncer.toml", dir, []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		StateDir: filepath.Join(dir, "state"),
		Database: filepath.Join(filepath.Dir(dir), "devices.db"),
		Publish: Publish{
			Topics:    []string{"device/+/data", "site/7/+/up"},
			Tolerance: 90 * time.Second,
			MaxBytes:  4096,
			Rate:      2.5,
			Burst:     10,

			MaxBadSignatures: 5,
		},
		Backend: Backend{
			URL:           "https://backend.example:8443/in/{device_id}?v=1",
			Timeout:       1500 * time.Millisecond,
			Batch:         1,
			Linger:        20 * time.Millisecond,
			Concurrency:   8,
			MaxAge:        24 * time.Hour,
			BearerToken:   secret.Secret("backend-token"),
			SigningSecret: secret.Secret("whsec_x"),
			Order:         OrderNone,
			FatalStatuses: []int{404, 501},
			TLS:           got.Backend.TLS,
		},
		Fleet:    Fleet{Prefix: "bouncer", Partitions: 16, Replicas: 3, Dedup: 20 * time.Minute, MaxBytes: 20 << 30},
		Response: Response{MaxAge: 10 * time.Minute, Wrap: true},
		Command:  Command{Topic: "to/{device_id}", Keys: got.Command.Keys},
		Rejected: Rejected{Topic: "device/{device_id}/rejected"},
		ACL:      ACL{Others: OthersDefer, UnknownCertificates: UnknownDeny, Certificates: []string{"dashboard", "Größe 1"}},
		Journal:  Journal{MaxBytes: 500e6, DeviceShare: 0.5},
		HTTP:     HTTP{Listen: "[::]:8080", Token: secret.Secret("http-token"), TLS: got.HTTP.TLS},
		Registry: Registry{Key: secret.Secret(registryKey)},
		Audit:    Audit{File: filepath.Join(dir, "audit.jsonl"), MaxBytes: 1 << 20, Keep: 3},

		DeadLetters: DeadLetters{MaxBytes: 2 << 30, DeviceShare: 0.25, AtLimit: AtLimitDropOldest},
	}
	if files := got.Files(); len(files) != 10 || !keys.Equal(got.Command.Keys) || !slices.Contains(files, File{"http.token_file", filepath.Join(dir, "http-token")}) {
		t.Errorf("files: %v", files)
	}
	got.file, got.lines, got.files = "", nil, nil // TestWhere's business
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for name, c := range map[string]*tls.Config{"backend": got.Backend.TLS, "http": got.HTTP.TLS} {
		if c == nil || c.MinVersion != tls.VersionTLS12 || len(c.Certificates) != 1 || c.InsecureSkipVerify {
			t.Errorf("%s: TLS = %+v", name, c)
		}
	}
	if got.Backend.TLS.RootCAs == nil {
		t.Error("backend: the system's CAs instead of ca_file")
	}
}

// TestBurst: without a burst a device may use up one second of its rate at once.
func TestBurst(t *testing.T) {
	for source, want := range map[string]int{
		"rate = 0":               0,
		"rate = 0.1":             1,
		"rate = 2":               2,
		"rate = 2.5":             3,
		"rate = 1e6":             1e6,
		"rate = 2.5\nburst = 1":  1,
		"rate = 2.5\nburst = 0":  3,
		"rate = 2\nburst = 1000": 1000,
	} {
		c, err := parse("b.toml", "/", []byte("[publish]\n"+source))
		if err != nil {
			t.Fatalf("%q: %v", source, err)
		}
		if c.Publish.Burst != want {
			t.Errorf("%q: Burst = %d, want %d", source, c.Publish.Burst, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for source, want := range map[string]int64{
		`1048576`:    1 << 20,
		`"1048576"`:  1 << 20,
		`1_048_576`:  1 << 20,
		`"1MiB"`:     1 << 20,
		`"64 MiB"`:   64 << 20,
		`"1GiB"`:     1 << 30,
		`"1TiB"`:     1 << 40,
		`"2048KiB"`:  2 << 20,
		`"2000kB"`:   2e6,
		`"2000KB"`:   2e6,
		`"500MB"`:    500e6,
		`"1GB"`:      1e9,
		`"1TB"`:      1e12,
		`"2000000B"`: 2e6,
	} {
		c, err := parse("b.toml", "/", []byte("[journal]\nmax_bytes = "+source))
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if c.Journal.MaxBytes != want {
			t.Errorf("%s: %d bytes, want %d", source, c.Journal.MaxBytes, want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, dir, "bouncer.toml", []byte("state_dir = \"state\"\n"), 0o640)
	c, err := Load("bouncer.toml")
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "state"); c.StateDir != want {
		t.Errorf("StateDir = %q, want %q, whatever the working directory becomes", c.StateDir, want)
	}

	_, err = Load("none.toml")
	if want := "none.toml: cannot be read: no such file or directory; name an existing file, or create one with bouncerctl init"; err == nil || err.Error() != want || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v\nwant %s", err, want)
	}
	_, err = Load(dir)
	if want := dir + ": cannot be read: not a regular file; the broker's user must be able to read it"; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	write(t, dir, "large.toml", bytes.Repeat([]byte("#"), MaxFileBytes+1), 0o640)
	_, err = Load("large.toml")
	if want := "large.toml: cannot be read: larger than 1048576 bytes; the broker's user must be able to read it"; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	write(t, dir, "http.toml", []byte("\n[http]\nlisten = \"127.0.0.1:80\"\n"), 0o640)
	_, err = Load("http.toml")
	if want := "http.toml:3: http.listen: needs a bearer token; set http.token_file"; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestWhere(t *testing.T) {
	c, err := parse("b.toml", "/etc", []byte("database = \"x\"\n\n[backend]\nurl = \"http://h/\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"database": "b.toml:1: database", "backend.url": "b.toml:4: backend.url", "backend.timeout": "b.toml: backend.timeout",
	} {
		if got := c.Where(key); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
