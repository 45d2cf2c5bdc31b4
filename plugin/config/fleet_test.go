package config

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const credentials = "-----BEGIN NATS USER JWT-----\nx.y.z\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\nSUAB\n------END USER NKEY SEED------\n"

func TestFleet(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t)
	write(t, dir, "cert.pem", cert, 0o644)
	write(t, dir, "key.pem", key, 0o640)
	write(t, dir, "nats.creds", []byte(credentials), 0o640)
	const source = `
[fleet]
servers    = ["tls://n1:4222", "tls://10.0.0.2:4223", "tls://[::1]:4222"]
name       = "gw-a"
ca_file    = "cert.pem"
cert_file  = "cert.pem"
key_file   = "key.pem"
creds_file = "nats.creds"
prefix     = "plant_7"
partitions = 4
replicas   = 1
dedup      = "1h"
max_bytes  = "1GiB"
deliver    = false
`
	got, err := parse("bouncer.toml", dir, []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	f := got.Fleet
	want := Fleet{
		Servers: []string{"tls://n1:4222", "tls://10.0.0.2:4223", "tls://[::1]:4222"}, Name: "gw-a", TLS: f.TLS, Credentials: f.Credentials,
		Prefix: "plant_7", Partitions: 4, Replicas: 1, Dedup: time.Hour, MaxBytes: 1 << 30,
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got %+v\nwant %+v", f, want)
	}
	if f.TLS == nil || f.TLS.MinVersion != tls.VersionTLS12 || f.TLS.RootCAs == nil || len(f.TLS.Certificates) != 1 || f.TLS.InsecureSkipVerify {
		t.Errorf("TLS %+v", f.TLS)
	}
	if !bytes.Equal(f.Credentials, []byte(credentials)) {
		t.Error("other credentials")
	}
	if files := got.Files(); len(files) != 4 || !slices.ContainsFunc(files, func(f File) bool { return f.Key == "fleet.creds_file" }) {
		t.Errorf("files: %v", files)
	}
	plain, err := parse("b.toml", dir, []byte("[fleet]\nservers = [\"nats://127.0.0.1:4222\"]\nname = \"a\"\ndeliver = false\n"))
	if err != nil || plain.Fleet.TLS != nil {
		t.Errorf("plain: %v", err)
	}
	// What bouncerctl init has written stays, but for the backend's URL.
	example := strings.Replace(Example("", nil), "servers = []", "servers = [\"tls://n1:4222\"]\nname = \"a\"\ndeliver = false", 1)
	if _, err := parse("b.toml", dir, []byte(example)); err != nil {
		t.Errorf("the example with a fleet: %v", err)
	}
}

// TestFleetReloaded: every change of [fleet] needs a restart.
func TestFleetReloaded(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "nats.creds", []byte(credentials), 0o640)
	write(t, dir, "other.creds", []byte(credentials+"\n"), 0o640)
	base := map[string]string{"servers": `["tls://n1:4222"]`, "name": `"a"`, "deliver": "false", "creds_file": `"nats.creds"`}
	load := func(change, to string) *Config {
		source := "[fleet]\n"
		for key, value := range base {
			if key != change {
				source += key + " = " + value + "\n"
			}
		}
		if change != "" {
			source += change + " = " + to + "\n"
		}
		c, err := parse("b.toml", dir, []byte(source))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := load("", "")
	for key, to := range map[string]string{
		"servers": `["tls://n1:4222", "tls://n2:4222"]`, "name": `"b"`, "creds_file": `"other.creds"`, "prefix": `"p"`, "partitions": "2", "replicas": "1",
		"dedup": `"2h"`, "max_bytes": `"2GiB"`,
	} {
		next, changes := before.Reloaded(load(key, to))
		if !slices.Equal(changes.Restart, []string{"fleet." + key}) || len(changes.Live)+len(changes.Renewed) > 0 || !reflect.DeepEqual(next.Fleet, before.Fleet) {
			t.Errorf("%s: %+v", key, changes)
		}
	}
}

func TestFleetProblems(t *testing.T) {
	const sound = "[fleet]\nservers = [\"tls://n1:4222\"]\nname = \"a\"\ndeliver = false\n"
	with := func(servers string) string {
		return "[fleet]\nname = \"a\"\ndeliver = false\nservers = " + servers + "\n"
	}
	const example = `["tls://n1:4222", "tls://n2:4222", "tls://n3:4222"]`
	for _, test := range []struct{ source, want string }{
		{with(`"tls://n1:4222"`), `4: fleet.servers: is text; write a list of URLs, for example ` + example},
		{with(`[1]`), `4: fleet.servers: has an integer in the list; write URLs in quotes, for example ` + example},
		{with(`["tls://n1:4222", "tls://n1:4222"]`), `4: fleet.servers: "tls://n1:4222" is given twice; remove one`},
		{with(`["tls://n1:4222", "nats://127.0.0.1:4222"]`), `4: fleet.servers: "tls://n1:4222" and "nats://127.0.0.1:4222" differ in TLS; use tls:// for all`},
		{with(`["tls://user:geheim@n1:4222"]`), `4: fleet.servers: has a user name or password in it; remove them and use fleet.creds_file or fleet.cert_file`},
		{with(`["nats://n1:4222"]`), `4: fleet.servers: "nats://n1:4222" is not a loopback address, and messages would be sent unencrypted; use tls://`},
		{with(`["ws://n1:4222"]`), `4: fleet.servers: "ws://n1:4222" does not begin with tls:// or nats://; write for example "tls://n1:4222"`},
		{with(`["tls://n1"]`), `4: fleet.servers: "tls://n1" has no port from 1 to 65535; write for example "tls://n1:4222"`},
		{with(`["tls://n1:0"]`), `4: fleet.servers: "tls://n1:0" has no port from 1 to 65535; write for example "tls://n1:4222"`},
		{with(`["tls://:4222"]`), `4: fleet.servers: "tls://:4222" is not the URL of a NATS server; write for example "tls://n1:4222"`},
		{with(`["tls://n1:4222/x"]`), `4: fleet.servers: "tls://n1:4222/x" is not the URL of a NATS server; write for example "tls://n1:4222"`},
		{with("[" + strings.Repeat(`"tls://n1:4222",`, 17) + "]"), `4: fleet.servers: has 17 servers; give at most 16`},
		{"[fleet]\nservers = [\"tls://n1:4222\"]\ndeliver = false\n", `2: fleet.servers: needs a name for this gateway; set fleet.name`},
		{"[fleet]\nservers = [\"tls://n1:4222\"]\nname = \"a\"\n", `2: fleet.servers: needs fleet.deliver, which says who reads the stream; write deliver = false: consumers read it themselves`},
		{"[fleet]\nservers = [\"tls://n1:4222\"]\nname = \"a\"\ndeliver = true\n", `4: fleet.deliver: this version does not deliver from the stream; write false, and have consumers read it`},
		{"[fleet]\nname = \"a\"\n", `2: fleet.name: does nothing without servers; set fleet.servers or remove the line`},
		{"[fleet]\nservers = []\ndedup = \"1h\"\n", `3: fleet.dedup: does nothing without servers; set fleet.servers or remove the line`},
		{sound + "prefix = \"a.b\"\n", `5: fleet.prefix: "a.b" is not a name here; use 1 to 32 of A-Z a-z 0-9 _ -, for example "bouncer"`},
		{sound + "prefix = \"\"\n", `5: fleet.prefix: "" is not a name here; use 1 to 32 of A-Z a-z 0-9 _ -, for example "bouncer"`},
		{sound + "partitions = 0\n", `5: fleet.partitions: 0 is out of range; use 1 to 256`},
		{sound + "replicas = 6\n", `5: fleet.replicas: 6 is out of range; use 1 to 5`},
		{sound + "dedup = \"9m\"\n", `5: fleet.dedup: 9m0s is less than 2 x publish.tolerance; use at least "10m", and longer to cover an outage`},
		{sound + "creds_file = \"none\"\n", `5: fleet.creds_file: "/etc/b/none" cannot be read: no such file or directory; the broker's user must be able to read it`},
		{"[fleet]\nservers = [\"nats://[::1]:4222\"]\nname = \"a\"\ndeliver = false\nca_file = \"none\"\n",
			"5: fleet.ca_file: \"/etc/b/none\" cannot be read: no such file or directory; the broker's user must be able to read it\n" +
				"5: fleet.ca_file: has no effect with nats URLs; use tls:// in fleet.servers, or remove the line"},
		{sound + "[backend]\nurl = \"http://h/\"\n", `6: backend.url: has no effect with fleet.servers, because messages go to NATS; remove the line`},
		{sound + "[backend]\nmax_age = \"1h\"\n", `6: backend.max_age: has no effect with fleet.servers, because messages go to NATS; remove the line`},
		{sound + "[backend]\norder = \"none\"\n", `6: backend.order: has no effect with fleet.servers, because messages go to NATS; remove the line`},
		{sound + "[backend]\nfatal_statuses = [404]\n", `6: backend.fatal_statuses: has no effect with fleet.servers, because messages go to NATS; remove the line`},
	} {
		_, err := parse("bouncer.toml", "/etc/b", []byte(test.source))
		if err == nil {
			t.Errorf("%s\nis taken; want %s", test.source, test.want)
			continue
		}
		if got := strings.ReplaceAll(err.Error(), "bouncer.toml:", ""); got != test.want || strings.Contains(got, "geheim") {
			t.Errorf("%s\n got %s\nwant %s", test.source, got, test.want)
		}
	}
	dir := t.TempDir()
	write(t, dir, "bad.creds", []byte("secret words"), 0o640)
	_, err := parse("b.toml", dir, []byte(sound+"creds_file = \"bad.creds\"\n"))
	if err == nil || !strings.Contains(err.Error(), "is not a credentials file of NATS; make one with nsc generate creds") || strings.Contains(err.Error(), "secret words") {
		t.Errorf("bad: %v", err)
	}
	write(t, dir, "open.creds", []byte(credentials), 0o644)
	if _, err := parse("b.toml", dir, []byte(sound+"creds_file = \"open.creds\"\n")); err == nil || !strings.Contains(err.Error(), "can be read or changed by every user (mode 0644)") {
		t.Errorf("open: %v", err)
	}
}
