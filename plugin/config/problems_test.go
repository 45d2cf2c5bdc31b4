package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

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
		{"[acl]\ncertificates = [\"\"]\n", `2: acl.certificates: "" is not a common name; write 1 to 256 bytes of one line of text`},
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
		{"[response]\ntopic = \"device/{device_id}/data\"\n", `2: response.topic: "device/{device_id}/data" overlaps with "device/+/data" of publish.topics: both would use the same topic; change one`},
		{"[response]\ntopic = \"{device_id}/x/data\"\n", `2: response.topic: "{device_id}/x/data" overlaps with "device/+/data" of publish.topics: both would use the same topic; change one`},
		{"[publish]\ntopics = [\"device/+/response\"]\n", `2: publish.topics: "device/+/response" overlaps with "device/{device_id}/response" of response.topic: both would use the same topic; change one`},
		{"[publish]\ntopics = [\"device/+/command/result\"]\n[http]\nlisten = \"127.0.0.1:80\"\ntoken_file = \"token\"\n", `2: publish.topics: "device/+/command/result" overlaps with "device/{device_id}/command/result" of command.topic: both would use the same topic; change one` + "\n" +
			`5: http.token_file: "/etc/b/token" cannot be read: no such file or directory; the broker's user must be able to read it`},
		{"[rejected]\ntopic = \"device/{device_id}/command\"\n", `2: rejected.topic: "device/{device_id}/command" overlaps with "device/{device_id}/command" of command.topic: both would use the same topic; change one`},

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
		{"[backend]\nurl = \"http://h/?id={device}\"\n", `2: backend.url: "http://h/" has an unknown placeholder; the only one is {device_id}`},
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
			"2: http.listen: \"0.0.0.0:80\" is not a loopback address, and the token would be sent unencrypted; set http.cert_file and http.key_file, or listen on 127.0.0.1"},

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
