package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
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
			Response: Response{Topic: "device/{device_id}/response", MaxAge: time.Hour},
			Command:  Command{Topic: "device/{device_id}/command"},
			ACL:      ACL{Others: OthersAuto, UnknownCertificates: UnknownOthers},
			Journal:  Journal{MaxBytes: 1 << 30, Sync: 100 * time.Millisecond, DeviceShare: 0.25},
			Audit:    Audit{MaxBytes: 64 << 20, Keep: 8},

			DeadLetters: DeadLetters{MaxBytes: 1 << 30, DeviceShare: 0.1, AtLimit: AtLimitStop},
		}
		got.file, got.lines = "", nil // TestWhere's business
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
			BearerToken:   Secret("backend-token"),
			SigningSecret: Secret("whsec_x"),
			Order:         OrderNone,
			FatalStatuses: []int{404, 501},
			TLS:           got.Backend.TLS,
		},
		Response: Response{MaxAge: 10 * time.Minute, Wrap: true},
		Command:  Command{Topic: "to/{device_id}"},
		Rejected: Rejected{Topic: "device/{device_id}/rejected"},
		ACL:      ACL{Others: OthersDefer, UnknownCertificates: UnknownDeny, Certificates: []string{"dashboard", "Größe 1"}},
		Journal:  Journal{MaxBytes: 500e6, DeviceShare: 0.5},
		HTTP:     HTTP{Listen: "[::]:8080", Token: Secret("http-token"), TLS: got.HTTP.TLS},
		Registry: Registry{Key: Secret(registryKey)},
		Audit:    Audit{File: filepath.Join(dir, "audit.jsonl"), MaxBytes: 1 << 20, Keep: 3},

		DeadLetters: DeadLetters{MaxBytes: 2 << 30, DeviceShare: 0.25, AtLimit: AtLimitDropOldest},
	}
	if files := got.Files(); len(files) != 9 || !slices.Contains(files, File{"http.token_file", filepath.Join(dir, "http-token")}) {
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

// TestProblems holds each refusal to its line, key and text.
func TestProblems(t *testing.T) {
	const sizes = `an integer of bytes or a size such as "64KiB", "500MB" or "1GiB"`
	tests := []struct{ source, want string }{
		// Syntax.
		{"[publish]\ntolerance = 5m\n", `2: publish.tolerance: not valid TOML: strings must be quoted; correct the line (text, durations and paths stand in quotes, each key once)`},
		{"[publish]\nrate = 1\nrate = 2\n", `3: publish.rate: not valid TOML: key rate is already defined; correct the line (text, durations and paths stand in quotes, each key once)`},
		{"\n\n[publish\n", `3: not valid TOML: expected ']' to close table name; correct the line (text, durations and paths stand in quotes, each key once)`},

		// Unknown keys.
		{"[publish]\n# wrong\ntolerence = \"5m\"\n", `3: publish.tolerence: unknown key; did you mean publish.tolerance?`},
		{"tolerance = \"5m\"\n", `1: tolerance: unknown key; did you mean publish.tolerance?`},
		{"[backend]\nmax_bytes = 5\n", `2: backend.max_bytes: unknown key; did you mean publish.max_bytes?`},
		{"\"publish.rate\" = 1\n", `1: "publish.rate": unknown key; did you mean publish.rate?`},
		{"[publish]\nshoe_size = 46\n", `2: publish.shoe_size: unknown key; remove it`},
		{"publish.rate.limit = 46\n", "1: publish.rate: is a section; write a number from 0 to 1000000\n1: publish.rate.limit: unknown key; remove it"},
		{"[bakend]\nurl = \"x\"\ntimeout = \"1s\"\n", `1: bakend: unknown section; did you mean backend?`},
		{"[inspection]\nfile = \"x\"\n[inspection.more]\n", `1: inspection: unknown section; remove it`},
		{"[audit]\nfile = \"x\"\n[audit.more]\n", `3: audit.more: unknown key; did you mean audit.file?`},
		{"[audit]\nfile = \"x\"\nmax_bytes = 65535\n", `3: audit.max_bytes: 65535 bytes is out of range; use 65536 or more, or 0 for any size`},
		{"[audit]\nkeep = 3\n", `2: audit.keep: does nothing without a file; set audit.file or remove the line`},
		{"publish = 5\n", `1: publish: is a section; write [publish] on a line of its own and its settings below`},
		{"[[publish]]\nrate = 1\n", `1: publish: is a section; write [publish] on a line of its own and its settings below`},
		{"[publish]\nrate = { limit = 1 }\n", "2: publish.rate: is a section; write a number from 0 to 1000000\n2: publish.rate.limit: unknown key; remove it"},

		// Paths.
		{"state_dir = \"\"\n", `1: state_dir: is empty; give a path, or remove the line for "/var/lib/mosquitto-bouncer"`},
		{"database = 1\n", `1: database: is an integer; write text in quotes, for example "/var/lib/mosquitto-bouncer/devices.db"`},
		{"database = \"a\\nb\"\n", `1: database: "a\nb" has a control character; write one line of text, for example "/var/lib/mosquitto-bouncer/devices.db"`},

		// Delivery.
		{"[backend]\norder = \"random\"\n", `2: backend.order: is "random"; use one of "device", "none"`},
		{"[backend]\nfatal_statuses = 404\n", `2: backend.fatal_statuses: is an integer; write a list of statuses, for example [404, 501]`},
		{"[backend]\nfatal_statuses = [\"404\"]\n", `2: backend.fatal_statuses: has text in the list; write statuses as integers, for example [404, 501]`},
		{"[backend]\nfatal_statuses = [200]\n", `2: backend.fatal_statuses: 200 is out of range; use 300 to 599`},
		{"[backend]\nfatal_statuses = [404, 404]\n", `2: backend.fatal_statuses: 404 is given twice; remove one`},
		{"[response]\nwrap = \"yes\"\n", `2: response.wrap: is text; write true or false`},
		{"[response]\nmax_age = \"0s\"\n", `2: response.max_age: "0s" is out of range; use 1s to 8760h, for example "1h"`},
		{"[dead_letters]\nmax_bytes = 1000\n", `2: dead_letters.max_bytes: 1000 bytes is out of range; use 1048576 to 1099511627776`},
		{"[dead_letters]\ndevice_share = 0\n", `2: dead_letters.device_share: 0 is out of range; use 0.001 to 1`},
		{"[dead_letters]\nat_limit = \"drop\"\n", `2: dead_letters.at_limit: is "drop"; use one of "stop", "drop-oldest"`},
		// Common names.
		{"[acl]\nunknown_certificates = \"no\"\n", `2: acl.unknown_certificates: is "no"; use one of "others", "deny"`},
		{"[acl]\ncertificates = \"dashboard\"\n", `2: acl.certificates: is text; write a list of common names, for example ["dashboard", "backend"]`},
		{"[acl]\ncertificates = [\"\"]\n", `2: acl.certificates: "" is no common name; write 1 to 256 bytes of one line of text`},
		{"[acl]\ncertificates = [\"a\", \"b\", \"a\"]\n", `2: acl.certificates: "a" is given twice; remove one`},
		{"[acl]\ncertificates = [1]\n", `2: acl.certificates: has an integer in the list; write common names in quotes, for example ["dashboard", "backend"]`},

		// Durations.
		{"[publish]\ntolerance = \"-3m\"\n", `2: publish.tolerance: "-3m" is out of range; use 1s to 24h, for example "5m"`},
		{"[publish]\ntolerance = \"25h\"\n", `2: publish.tolerance: "25h" is out of range; use 1s to 24h, for example "5m"`},
		{"[publish]\ntolerance = \"1500ms\"\n", `2: publish.tolerance: 1.5s is not a whole number of seconds; timestamps are in seconds, so use for example "5m"`},
		{"[publish]\ntolerance = \"5\"\n", `2: publish.tolerance: "5" is not a duration; write a number and a unit (ms, s, m, h), for example "5m"`},
		{"[publish]\ntolerance = 300\n", `2: publish.tolerance: is an integer; write a duration in quotes, for example "5m"`},
		{"[backend]\ntimeout = \"99ms\"\n", `2: backend.timeout: "99ms" is out of range; use 100ms to 5m, for example "5s"`},
		{"[backend]\nmax_age = \"59s\"\n", `2: backend.max_age: "59s" is out of range; use 1m to 8760h, for example "72h"`},
		{"[journal]\nsync = \"never\"\n", `2: journal.sync: "never" is not a duration; write a number and a unit (ms, s, m, h), for example "100ms"`},
		{"[journal]\ndevice_share = 1.5\n", `2: journal.device_share: 1.5 is out of range; use 0.001 to 1`},
		{"[backend]\nbatch = 1001\n", `2: backend.batch: 1001 is out of range; use 1 to 1000`},
		{"[backend]\nbatch = 2\n", `2: backend.batch: messages of many devices go in one request, so the URL cannot name one; remove {device_id} from backend.url, or the line`},
		{"[backend]\nlinger = \"1s\"\n", `2: backend.linger: does nothing without a batch; set backend.batch or remove the line`},
		{"[publish]\nmax_bytes = 1048576\n[journal]\nmax_bytes = 1048576\n", `4: journal.max_bytes: 1048576 bytes is too little for messages of publish.max_bytes (1048576); use at least 1179648`},
		{"[journal]\nsync = \"11s\"\n", `2: journal.sync: "11s" is out of range; use 1ms to 10s, for example "100ms"`},

		// Numbers and sizes.
		{"[publish]\nmax_bytes = 255\n", `2: publish.max_bytes: 255 bytes is out of range; use 256 to 268435455`},
		{"[publish]\nmax_bytes = \"256MiB\"\n", `2: publish.max_bytes: 268435456 bytes is out of range; use 256 to 268435455`},
		{"[publish]\nmax_bytes = \"1.5MiB\"\n", `2: publish.max_bytes: "1.5MiB" is not a size; write ` + sizes},
		{"[publish]\nmax_bytes = \"-1\"\n", `2: publish.max_bytes: "-1" is not a size; write ` + sizes},
		{"[publish]\nmax_bytes = true\n", `2: publish.max_bytes: is true or false; write ` + sizes},
		{"[journal]\nmax_bytes = \"9999999TiB\"\n", `2: journal.max_bytes: 9223372036854775807 bytes is out of range; use 1048576 to 1099511627776`},
		{"[publish]\nrate = -0.5\n", `2: publish.rate: -0.5 is out of range; use 0 to 1000000`},
		{"[publish]\nrate = nan\n", `2: publish.rate: NaN is out of range; use 0 to 1000000`},
		{"[publish]\nrate = inf\n", `2: publish.rate: +Inf is out of range; use 0 to 1000000`},
		{"[publish]\nrate = \"1\"\n", `2: publish.rate: is text; write a number from 0 to 1000000`},
		{"[publish]\nrate = 1\nburst = -1\n", `3: publish.burst: -1 is out of range; use 0 to 1000000`},
		{"[publish]\nburst = 3\n", `2: publish.burst: does nothing without a rate; set publish.rate or remove the line`},
		{"[backend]\nconcurrency = 0\n", `2: backend.concurrency: 0 is out of range; use 1 to 4096`},
		{"[backend]\nconcurrency = 4097\n", `2: backend.concurrency: 4097 is out of range; use 1 to 4096`},
		{"[backend]\nconcurrency = 1.0\n", `2: backend.concurrency: is a fraction; write an integer from 1 to 4096`},
		{"[backend]\nconcurrency = 1979-05-27\n", `2: backend.concurrency: is a date or time; write an integer from 1 to 4096`},

		// Gated filters.
		{"[publish]\ntopics = \"device/+/data\"\n", `2: publish.topics: is text; write a list of topic filters, for example ["device/+/data"]`},
		{"[publish]\ntopics = []\n", `2: publish.topics: has 0 topic filters; give 1 to 16, for example ["device/+/data"]`},
		{"[publish]\ntopics = [" + strings.Repeat("\"a/+\",", 17) + "]\n", `2: publish.topics: has 17 topic filters; give 1 to 16, for example ["device/+/data"]`},
		{"[publish]\ntopics = [7]\n", `2: publish.topics: has an integer in the list; write topic filters in quotes, for example ["device/+/data"]`},
		{"[publish]\ntopics = [\"device/data\"]\n", `2: publish.topics: "device/data" has 0 "+" levels; exactly one, the device id, is needed, as in "device/+/data"`},
		{"[publish]\ntopics = [\"+/+\"]\n", `2: publish.topics: "+/+" has 2 "+" levels; exactly one, the device id, is needed, as in "device/+/data"`},
		{"[publish]\ntopics = [\"device/+/#\"]\n", `2: publish.topics: "device/+/#" has "#"; write the levels out, as in "device/+/data"`},
		{"[publish]\ntopics = [\"device/a+/data\"]\n", `2: publish.topics: "device/a+/data" has "+" inside a level; "+" must be a whole level, as in "device/+/data"`},
		{"[publish]\ntopics = [\"$SYS/+\"]\n", `2: publish.topics: "$SYS/+" begins with "$", which is the broker's own; use another topic`},
		{"[publish]\ntopics = [\"/device/+\"]\n", `2: publish.topics: "/device/+" has an empty level; remove the "/" at an end, or one of two in a row`},
		{"[publish]\ntopics = [\"device/+/\"]\n", `2: publish.topics: "device/+/" has an empty level; remove the "/" at an end, or one of two in a row`},
		{"[publish]\ntopics = [\"\"]\n", `2: publish.topics: "" is empty; give a topic of which one level is the device id`},
		{"[publish]\ntopics = [\"a\\tb/+\"]\n", `2: publish.topics: "a\tb/+" has control characters or invalid UTF-8; use printable text`},
		{"[publish]\ntopics = [\"" + strings.Repeat("a", 1023) + "/+\"]\n", `2: publish.topics: "` + strings.Repeat("a", 80) + `"... is longer than 1024 bytes; use a shorter topic`},
		{"[publish]\ntopics = [\"device/{device_id}/data\"]\n", `2: publish.topics: "device/{device_id}/data" has {device_id}, which is for topics; write "+" for the device id here`},
		{"[publish]\ntopics = [\"device/+/data\",\n \"device/+/data\"]\n", `2: publish.topics: "device/+/data" is given twice; remove one`},
		{"[publish]\ntopics = [\"a/+/data\", \"+/b/data\"]\n", `2: publish.topics: "a/+/data" and "+/b/data" can match the same topic with different device ids; change one`},

		// Topics of each device.
		{"[response]\ntopic = \"response\"\n", `2: response.topic: "response" has {device_id} 0 times; exactly one level must be it, as in "device/{device_id}/response"`},
		{"[response]\ntopic = \"{device_id}/{device_id}\"\n", `2: response.topic: "{device_id}/{device_id}" has {device_id} 2 times; exactly one level must be it, as in "device/{device_id}/response"`},
		{"[response]\ntopic = \"a/x{device_id}\"\n", `2: response.topic: "a/x{device_id}" has braces in "x{device_id}"; the only placeholder is {device_id}, and it is a whole level`},
		{"[response]\ntopic = \"a/+/{device_id}\"\n", `2: response.topic: "a/+/{device_id}" has a wildcard; write {device_id} for the device id and the other levels out`},
		{"[command]\ntopic = \"\"\n", `2: command.topic: "" is empty; give a topic of which one level is the device id`},
		{"[rejected]\ntopic = \"$SYS/{device_id}\"\n", `2: rejected.topic: "$SYS/{device_id}" begins with "$", which is the broker's own; use another topic`},
		{"[response]\ntopic = \"device/{device_id}/data\"\n", `2: response.topic: "device/{device_id}/data" meets "device/+/data" of publish.topics: the same topic would serve both; change one`},
		{"[response]\ntopic = \"{device_id}/x/data\"\n", `2: response.topic: "{device_id}/x/data" meets "device/+/data" of publish.topics: the same topic would serve both; change one`},
		{"[publish]\ntopics = [\"device/+/response\"]\n", `2: publish.topics: "device/+/response" meets "device/{device_id}/response" of response.topic: the same topic would serve both; change one`},
		{"[publish]\ntopics = [\"device/+/command/result\"]\n[http]\nlisten = \"127.0.0.1:80\"\ntoken_file = \"token\"\n", `2: publish.topics: "device/+/command/result" meets "device/{device_id}/command/result" of command.topic: the same topic would serve both; change one` + "\n" +
			`5: http.token_file: "/etc/b/token" cannot be read: no such file or directory; the broker's user must be able to read it`},
		{"[rejected]\ntopic = \"device/{device_id}/command\"\n", `2: rejected.topic: "device/{device_id}/command" meets "device/{device_id}/command" of command.topic: the same topic would serve both; change one`},

		// URL.
		{"[backend]\nurl = \"\"\n", `2: backend.url: "" does not begin with http:// or https://; write it in full, for example "http://localhost:5000/device/{device_id}/data"`},
		{"[backend]\nurl = \"localhost:5000/x\"\n", `2: backend.url: "localhost:5000/x" does not begin with http:// or https://; write it in full, for example "http://localhost:5000/device/{device_id}/data"`},
		{"[backend]\nurl = \"ftp://h/?key=s3cret\"\n", `2: backend.url: "ftp://h/" does not begin with http:// or https://; write it in full, for example "http://localhost:5000/device/{device_id}/data"`},
		{"[backend]\nurl = \"http:///x\"\n", `2: backend.url: "http:///x" has no host; write it in full, for example "http://localhost:5000/device/{device_id}/data"`},
		{"[backend]\nurl = \"http://u:s3cret@h/\"\n", `2: backend.url: has a user name or password in it; remove them and use backend.bearer_token_file`},
		{"[backend]\nurl = \"u:s3cret@h/\"\n", `2: backend.url: has a user name or password in it; remove them and use backend.bearer_token_file`},
		{"[backend]\nurl = \"http://u:s3cret@h:x/\"\n", `2: backend.url: is not a URL; write it in full, for example "http://localhost:5000/device/{device_id}/data"`},
		{"[backend]\nurl = \"http://h:65536/\"\n", `2: backend.url: "http://h:65536/" has port "65536"; use 1 to 65535`},
		{"[backend]\nurl = \"http://h/#a\"\n", `2: backend.url: "http://h/#a" has a fragment, which is never sent; remove it from the # on`},
		{"[backend]\nurl = \"http://h/?id={device_id}\"\n", `2: backend.url: "http://h/" has braces outside its path; {device_id} can stand in the path only`},
		{"[backend]\nurl = \"http://{device_id}.h/\"\n", `2: backend.url: is not a URL; write it in full, for example "http://localhost:5000/device/{device_id}/data"`},
		{"[backend]\nurl = \"http://h/{deviceid}\"\n", `2: backend.url: "http://h/{deviceid}" has an unknown placeholder; the only one is {device_id}`},
		{"[backend]\nurl = \"http://h/a b\"\n", `2: backend.url: "http://h/a b" has a blank in it; remove it, or write %20`},

		// The rest.
		{"[acl]\nothers = \"Allow\"\n", `2: acl.others: is "Allow"; use one of "auto", "defer", "allow"`},
		{"[acl]\nothers = false\n", `2: acl.others: is true or false; use one of "auto", "defer", "allow"`},
		{"[http]\nlisten = \"8080\"\n", "2: http.listen: \"8080\" is not host:port; write for example \"127.0.0.1:8080\""},
		{"[http]\nlisten = \"127.0.0.1:0\"\n", "2: http.listen: \"127.0.0.1:0\" has port \"0\"; use 1 to 65535, for example \"127.0.0.1:8080\""},
		{"[http]\nlisten = \"127.0.0.1:80\"\n", "2: http.listen: needs a bearer token; set http.token_file"},
		{"[http]\nlisten = \"0.0.0.0:80\"\n", "2: http.listen: needs a bearer token; set http.token_file\n" +
			"2: http.listen: \"0.0.0.0:80\" is not a loopback address and would take the token in the clear; set http.cert_file and http.key_file, or listen on 127.0.0.1"},

		// Several at once, in the order of the lines.
		{"[publish]\nrate = -1\ntolerance = 5\nrat = 1\n", "2: publish.rate: -1 is out of range; use 0 to 1000000\n" +
			"3: publish.tolerance: is an integer; write a duration in quotes, for example \"5m\"\n" +
			"4: publish.rat: unknown key; did you mean publish.rate?"},
	}
	for _, test := range tests {
		want := "b.toml:" + strings.ReplaceAll(test.want, "\n", "\nb.toml:")
		_, err := parse("b.toml", "/etc/b", []byte(test.source))
		if err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", test.source, err, want)
		}
		var typed *Error
		if !errors.As(err, &typed) || len(typed.Problems) == 0 {
			t.Errorf("%q: not an *Error", test.source)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: a secret in %v", test.source, err)
		}
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

func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	load := func() (Secret, error) {
		c, err := parse("b.toml", dir, []byte("[backend]\nbearer_token_file = \"token\"\n"))
		if err != nil {
			return nil, err
		}
		return c.Backend.BearerToken, nil
	}
	const prefix = "b.toml:2: backend.bearer_token_file: "

	for _, test := range []struct {
		content string
		mode    fs.FileMode
		secret  string
		problem string
	}{
		{"token", 0o600, "token", ""},
		{"token\n", 0o640, "token", ""},
		{"token\r\n", 0o400, "token", ""},
		{"a blank", 0o600, "", fmt.Sprintf("%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)},
		{strings.Repeat("a", 4096) + "\n", 0o600, strings.Repeat("a", 4096), ""},
		{strings.Repeat("a", 4097), 0o600, "", fmt.Sprintf("%q is longer than 4096 bytes; put only the secret into it", path)},
		{"", 0o600, "", fmt.Sprintf("%q is empty; put the secret into it", path)},
		{"\n", 0o600, "", fmt.Sprintf("%q is empty; put the secret into it", path)},
		{"token\n\n", 0o600, "", fmt.Sprintf("%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)},
		{"tok\x00en", 0o600, "", fmt.Sprintf("%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)},
		{"tok\xffen", 0o600, "", fmt.Sprintf("%q has characters other than printable ASCII without blanks; put the secret into it as one line, in hexadecimal or base64", path)},
		{"token", 0o644, "", fmt.Sprintf("%q can be read or changed by every user (mode 0644); run: chmod o= %q", path, path)},
		{"token", 0o602, "", fmt.Sprintf("%q can be read or changed by every user (mode 0602); run: chmod o= %q", path, path)},
		{strings.Repeat("a", MaxFileBytes+1), 0o600, "", fmt.Sprintf("%q cannot be read: larger than 1048576 bytes; the broker's user must be able to read it", path)},
	} {
		write(t, dir, "token", []byte(test.content), test.mode)
		secret, err := load()
		switch {
		case test.problem == "" && (err != nil || string(secret) != test.secret):
			t.Errorf("%.20q mode %04o: got %.20q, %v", test.content, test.mode, string(secret), err)
		case test.problem != "" && (err == nil || err.Error() != prefix+test.problem):
			t.Errorf("%.20q mode %04o:\n got %v\nwant %s", test.content, test.mode, err, prefix+test.problem)
		}
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := load(); err == nil || err.Error() != prefix+fmt.Sprintf("%q cannot be read: no such file or directory; the broker's user must be able to read it", path) {
		t.Errorf("no file: %v", err)
	}
	// A FIFO without a writer must not hang the broker's start.
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(); err == nil || err.Error() != prefix+fmt.Sprintf("%q cannot be read: not a regular file; the broker's user must be able to read it", path) {
		t.Errorf("FIFO: %v", err)
	}
}

func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t)
	_, otherKey := selfSigned(t)
	write(t, dir, "cert.pem", cert, 0o644)
	write(t, dir, "key.pem", key, 0o600)
	write(t, dir, "other.pem", otherKey, 0o600)
	write(t, dir, "open.pem", key, 0o644)
	in := func(name string) string { return filepath.Join(dir, name) }

	c, err := parse("b.toml", dir, []byte("[backend]\nurl = \"https://h/\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Backend.TLS; got == nil || got.MinVersion != tls.VersionTLS12 || got.RootCAs != nil || got.Certificates != nil {
		t.Errorf("https without files: TLS = %+v", got)
	}

	const https = "[backend]\nurl = \"https://h/\"\n"
	for source, want := range map[string]string{
		https + "cert_file = \"cert.pem\"\n":                              "3: backend.cert_file: needs its private key; set backend.key_file",
		https + "key_file = \"key.pem\"\n":                                "3: backend.key_file: needs its certificate; set backend.cert_file",
		https + "cert_file = \"cert.pem\"\nkey_file = \"other.pem\"\n":    fmt.Sprintf("3: backend.cert_file: %q and %q are no pair (tls: private key does not match public key); name a PEM certificate and its unencrypted private key", in("cert.pem"), in("other.pem")),
		https + "cert_file = \"cert.pem\"\nkey_file = \"open.pem\"\n":     fmt.Sprintf("4: backend.key_file: %q can be read or changed by every user (mode 0644); run: chmod o= %q", in("open.pem"), in("open.pem")),
		https + "ca_file = \"key.pem\"\n":                                 fmt.Sprintf("3: backend.ca_file: %q has no certificate in it; name a PEM file of CA certificates", in("key.pem")),
		https + "ca_file = \"none.pem\"\n":                                fmt.Sprintf("3: backend.ca_file: %q cannot be read: no such file or directory; the broker's user must be able to read it", in("none.pem")),
		https + "ca_file = \".\"\n":                                       fmt.Sprintf("3: backend.ca_file: %q cannot be read: not a regular file; the broker's user must be able to read it", dir),
		"[backend]\n\nca_file = \"cert.pem\"\n":                           "3: backend.ca_file: has no use with an http URL; use https in backend.url, or remove the line",
		"[backend]\n\ncert_file = \"cert.pem\"\nkey_file = \"key.pem\"\n": "3: backend.cert_file: has no use with an http URL; use https in backend.url, or remove the line\nb.toml:4: backend.key_file: has no use with an http URL; use https in backend.url, or remove the line",
	} {
		_, err := parse("b.toml", dir, []byte(source))
		if err == nil || err.Error() != "b.toml:"+want {
			t.Errorf("%q:\n got %v\nwant b.toml:%s", source, err, want)
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

func TestManyProblems(t *testing.T) {
	var source strings.Builder
	for i := range 25 {
		fmt.Fprintf(&source, "unknown_%d = 1\n", i)
	}
	_, err := parse("b.toml", "/", []byte(source.String()))
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != maxProblems+1 || lines[maxProblems] != "b.toml: 5 more problems" {
		t.Errorf("got %d lines:\n%v", len(lines), err)
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	secret := Secret("s3cret")
	c := Config{Backend: Backend{BearerToken: secret}}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%c", "% x", "%10s", "%T%v"} {
		fmt.Fprintf(&out, verb+"\n", secret)
		fmt.Fprintf(&out, verb+"\n", c)
		fmt.Fprintf(&out, verb+"\n", &c)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("text", "secret", secret, "config", c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "secret", secret, "config", c)
	if err := json.NewEncoder(&out).Encode(map[string]any{"secret": secret, "backend": c.Backend.BearerToken}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&out, secret, errors.New("x"), []Secret{secret})
	base64 := "czNjcmV0"
	for _, leak := range []string{"s3cret", "733363726574", "115 51 99", "73 33 63", base64} {
		if strings.Contains(strings.ToLower(out.String()), leak) {
			t.Errorf("%q is in:\n%s", leak, out.String())
		}
	}
	if !strings.Contains(out.String(), "[redacted]") {
		t.Error("nothing says [redacted]")
	}
}

// FuzzParse: whatever parses is within its ranges, whatever does not is refused
// with the file's name first.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"",
		"state_dir = \"/var/lib/x\"\ndatabase = 'd.db'\n",
		"[publish]\ntopics = [\"device/+/data\", \"a/+\"]\ntolerance = \"5m\"\nmax_bytes = \"64KiB\"\nrate = 0.5\nburst = 3\n",
		"[backend]\nurl = \"https://h:1/{device_id}?a=b\"\ntimeout = \"5s\"\nconcurrency = 64\nmax_age = \"72h\"\nca_file = \"x\"\n",
		"[response]\ntopic = \"\"\n[command]\ntopic = \"c/{device_id}\"\n[rejected]\ntopic = \"r/{device_id}\"\n[acl]\nothers = \"allow\"\n",
		"[journal]\nmax_bytes = \"1GiB\"\nsync = \"always\"\n[http]\nlisten = \"127.0.0.1:8080\"\ntoken_file = \"t\"\n",
		"publish = { rate = 1, topics = [\n# comment\n'+'] }\r\n",
		"publish.rate.x = 1\n[[publish]]\n\"a.b\".c = 1979-05-27T07:32:00Z\n",
		"[publish]\nrate = nan\nburst = 0x10\ntolerance = \"\"\"5m\"\"\"\n",
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, source []byte) {
		c, err := parse("b.toml", dir, source)
		if err == nil {
			checkInvariants(t, c)
			return
		}
		if !strings.HasPrefix(err.Error(), "b.toml:") {
			t.Errorf("error %q does not begin with the file's name", err)
		}
		var typed *Error
		if !errors.As(err, &typed) {
			t.Errorf("%T is not an *Error", err)
		}
	})
}

func checkInvariants(t *testing.T, c *Config) {
	t.Helper()
	holds := map[string]bool{
		"paths":       filepath.IsAbs(c.StateDir) && filepath.IsAbs(c.Database),
		"topics":      len(c.Publish.Topics) >= 1 && len(c.Publish.Topics) <= 16,
		"tolerance":   c.Publish.Tolerance >= time.Second && c.Publish.Tolerance <= 24*time.Hour && c.Publish.Tolerance%time.Second == 0,
		"max_bytes":   c.Publish.MaxBytes >= 256 && c.Publish.MaxBytes <= 268435455,
		"rate":        c.Publish.Rate >= 0 && c.Publish.Rate <= 1e6,
		"burst":       (c.Publish.Burst > 0) == (c.Publish.Rate > 0) && c.Publish.Burst <= 1e6,
		"url":         strings.HasPrefix(strings.ToLower(c.Backend.URL), "http"),
		"timeout":     c.Backend.Timeout >= 100*time.Millisecond && c.Backend.Timeout <= 5*time.Minute,
		"concurrency": c.Backend.Concurrency >= 1 && c.Backend.Concurrency <= 4096,
		"max_age":     c.Backend.MaxAge >= time.Minute,
		"https":       (c.Backend.TLS != nil) == strings.HasPrefix(strings.ToLower(c.Backend.URL), "https:"),
		"others":      c.ACL.Others == "auto" || c.ACL.Others == "defer" || c.ACL.Others == "allow",
		"sync":        c.Journal.Sync >= 0 && c.Journal.Sync <= 10*time.Second,
		"command":     strings.Count(c.Command.Topic, DeviceID) == 1,
	}
	for _, filter := range c.Publish.Topics {
		holds["filter "+filter] = strings.Count(filter, "+") == 1 && !strings.Contains(filter, "#") && filter[0] != '$'
		for _, topic := range []string{c.Response.Topic, c.Command.Topic, c.Rejected.Topic} {
			holds[filter+" apart from "+topic] = topic == "" || !overlap(filter, topic)
		}
	}
	for what, ok := range holds {
		if !ok {
			t.Errorf("%s: %+v", what, c)
		}
	}
}

func write(t *testing.T, dir, name string, content []byte, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func selfSigned(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
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

func TestRegistryKey(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{"00", strings.Repeat("0", 63), strings.Repeat("x", 64), strings.Repeat("0", 66)} {
		write(t, dir, "key", []byte(content), 0o600)
		_, err := parse("bouncer.toml", dir, []byte("[registry]\nkey_file = \"key\"\n"))
		if want := "bouncer.toml:2: registry.key_file: does not hold a key, which is 64 hexadecimal digits; make one with bouncerctl registry key FILE"; err == nil || err.Error() != want {
			t.Errorf("%q: %v", content, err)
		}
	}
}
