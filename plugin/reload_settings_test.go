package plugin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/testkit"
)

// settingsFile is a bouncer.toml: TOML by the key of the setting.
type settingsFile map[string]string

func (s settingsFile) String() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%s = %s\n", key, s[key]) // dotted keys are TOML too
	}
	return b.String()
}

// with returns s with other values.
func (s settingsFile) with(others settingsFile) settingsFile {
	all := maps.Clone(s)
	maps.Copy(all, others)
	return all
}

// changedSettings has another value for every setting, with the other changes that it needs.
var changedSettings = map[string]settingsFile{
	"state_dir":                   {"state_dir": `"elsewhere"`},
	"database":                    {"database": `"other.db"`},
	"publish.topics":              {"publish.topics": `["device/+/data", "other/+"]`},
	"publish.tolerance":           {"publish.tolerance": `"1m"`},
	"publish.max_bytes":           {"publish.max_bytes": `1000`},
	"publish.rate":                {"publish.rate": `0.001`},
	"publish.burst":               {"publish.rate": `0.001`, "publish.burst": `2`},
	"publish.issuers":             {"publish.issuers": `["backend.crt"]`},
	"publish.max_bad_signatures":  {"publish.max_bad_signatures": `1`},
	"backend.url":                 {"backend.url": `"https://localhost:1/in"`},
	"backend.timeout":             {"backend.timeout": `"2s"`},
	"backend.concurrency":         {"backend.concurrency": `3`},
	"backend.max_age":             {"backend.max_age": `"2h"`},
	"backend.batch":               {"backend.batch": `3`},
	"backend.linger":              {"backend.linger": `"2ms"`},
	"backend.order":               {"backend.order": `"none"`},
	"backend.fatal_statuses":      {"backend.fatal_statuses": `[404]`},
	"backend.bearer_token_file":   {"backend.bearer_token_file": `"token2"`},
	"backend.signing_secret_file": {"backend.signing_secret_file": `""`},
	"backend.ca_file":             {"backend.ca_file": `"other.crt"`},
	"backend.cert_file":           {"backend.cert_file": `"other.crt"`, "backend.key_file": `"other.key"`},
	"backend.key_file":            nil, // changes with its certificate
	"response.topic":              {"response.topic": `""`},
	"response.max_age":            {"response.max_age": `"2h"`},
	"response.wrap":               {"response.wrap": `true`},
	"command.topic":               {"command.topic": `"to/{device_id}"`},
	"rejected.topic":              {"rejected.topic": `"device/{device_id}/rejected"`},
	"fleet.servers":               nil, // every change of [fleet] needs a restart: TestFleetReloaded in config
	"fleet.name":                  nil,
	"fleet.ca_file":               nil,
	"fleet.cert_file":             nil,
	"fleet.key_file":              nil,
	"fleet.creds_file":            nil,
	"fleet.prefix":                nil,
	"fleet.partitions":            nil,
	"fleet.replicas":              nil,
	"fleet.dedup":                 nil,
	"fleet.max_bytes":             nil,
	"fleet.deliver":               nil,
	"http.listen":                 {"http.listen": `"127.0.0.1:1"`},
	"http.token_file":             {"http.token_file": `"token2"`},
	"http.cert_file":              {"http.cert_file": `"other.crt"`, "http.key_file": `"other.key"`},
	"http.key_file":               nil, // changes with its certificate
	"journal.max_bytes":           {"journal.max_bytes": `"2GiB"`},
	"journal.device_share":        {"journal.device_share": `0.5`},
	"journal.sync":                {"journal.sync": `"200ms"`},
	"dead_letters.max_bytes":      {"dead_letters.max_bytes": `"2GiB"`},
	"dead_letters.device_share":   {"dead_letters.device_share": `0.5`},
	"dead_letters.at_limit":       {"dead_letters.at_limit": `"drop-oldest"`},
	"acl.others":                  {"acl.others": `"allow"`},
	"acl.unknown_certificates":    {"acl.unknown_certificates": `"deny"`},
	"acl.certificates":            {"acl.unknown_certificates": `"deny"`, "acl.certificates": `["dashboard"]`},
	"command.keys_file":           {"command.keys_file": `"command-keys.toml"`},
	"registry.key_file":           {"registry.key_file": `"registry.key"`},
	"audit.file":                  {"audit.file": `"other.jsonl"`},
	"audit.max_bytes":             {"audit.max_bytes": `"1GiB"`},
	"audit.keep":                  {"audit.keep": `4`},
}

// TestReloadOfEverySetting: each setting, changed in the file and reloaded, takes effect or is named as one that needs a restart, as the
// table of settings says. That it takes effect is observed from outside.
func TestReloadOfEverySetting(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pairs := map[string]tls.Certificate{}
	for i, name := range []string{"backend", "first", "other"} {
		cert, key := selfSigned(t, int64(i+1))
		write(name+".crt", cert)
		write(name+".key", key)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		pairs[name] = pair
	}
	write("token", bytes.Repeat([]byte("1"), 40))
	write("token2", bytes.Repeat([]byte("2"), 40))
	write("registry.key", bytes.Repeat([]byte("a"), 64))

	var mu sync.Mutex
	var request *http.Request // the one that came last
	backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		request = r
	}))
	backend.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{pairs["backend"]}}
	backend.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshakes that fail with another CA
	backend.StartTLS()
	t.Cleanup(backend.Close)

	key, err := registry.NewKey(bytes.Repeat([]byte("a"), 64))
	if err != nil {
		t.Fatal(err)
	}
	add := func(id string, options ...registry.Option) {
		t.Helper()
		store, err := registry.OpenStore(filepath.Join(dir, "devices.db"), options...)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(store.Add(context.Background(), id, registry.Secret("s")), store.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"sensor_001", "bad_before", "bad_after"} {
		add(id)
	}
	addKeyed(t, filepath.Join(dir, "devices.db"), "keyed")
	keys, err := (*commandkey.Set)(nil).With(time.Now(), time.Now(), commandkey.Algorithms()...)
	if err != nil {
		t.Fatal(err)
	}
	text, err := keys.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write("command-keys.toml", text)

	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	base := settingsFile{
		"state_dir": `"."`, "database": `"devices.db"`,
		"publish.rate": `1e6`, "publish.burst": `5`, "publish.max_bad_signatures": `1000000`,
		"backend.url": `"` + backend.URL + `/in"`, "backend.batch": `2`, "backend.linger": `"1ms"`,
		"backend.bearer_token_file": `"token"`, "backend.signing_secret_file": `"token"`, "backend.ca_file": `"backend.crt"`,
		"backend.cert_file": `"first.crt"`, "backend.key_file": `"first.key"`,
		"http.listen": `"` + address + `"`, "http.token_file": `"token"`, "http.cert_file": `"first.crt"`, "http.key_file": `"first.key"`,
		"acl.others": `"defer"`, "audit.file": `"audit.jsonl"`, "audit.max_bytes": `"64KiB"`, "audit.keep": `2`,
	}
	file := filepath.Join(dir, "bouncer.toml")
	write("bouncer.toml", []byte(base.String()))
	host := new(aBroker)
	running, err := Start(file, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Stop)
	add("encrypted", registry.WithKey(key)) // unknown as long as there is no key
	g := &aGateway{Gateway: running, t: t, host: host, dir: dir, file: file}

	reload := func(s settingsFile) {
		t.Helper()
		host.lines = nil
		write("bouncer.toml", []byte(s.String()))
		g.Reload()
		g.until("reloaded", func() bool { return host.count("bouncer.toml was") > 0 })
	}
	// Observers see from outside what is in force.
	stranger := func(name string) gate.Decision {
		return g.Access(gate.Write, &gate.Publish{Presented: true, CommonName: []byte(name), ClientID: []byte(name), Topic: []byte("elsewhere")})
	}
	admitted := func() string {
		n := 0
		for range 20 {
			if g.send(g.fresh("sensor_001")) == gate.Route {
				n++
			}
		}
		return fmt.Sprint(n)
	}
	sent := func(of func(*http.Request) string) func() string {
		return func() string {
			mu.Lock()
			request = nil
			mu.Unlock()
			g.send(g.fresh("sensor_001"))
			for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				g.Tick()
				mu.Lock()
				r := request
				mu.Unlock()
				if r != nil {
					return of(r)
				}
			}
			return "nothing"
		}
	}
	asks := func(method, path, body string, of func(*http.Response) string) func() string {
		return func() string {
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
			r, err := http.NewRequest(method, "https://"+address+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+strings.Repeat("1", 40))
			r.Header.Set("Content-Type", "application/json")
			answer, err := transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
			return of(answer)
		}
	}
	asked := func(of func(*http.Response) string) func() string { return asks("GET", "/metrics", "", of) }
	recorded := func() string {
		for i := range 1000 {
			g.audit.Add(audit.Record{Event: audit.Stop, Device: fmt.Sprint(i), Detail: strings.Repeat("x", 250), Topic: strings.Repeat("y", 250)})
		}
		time.Sleep(50 * time.Millisecond)
		names, _ := filepath.Glob(filepath.Join(dir, "*.jsonl*"))
		return fmt.Sprint(len(names))
	}
	badDevice := "bad_before" // whose count of this minute is 0
	observers := map[string]func() string{
		"publish.max_bytes": func() string {
			p := g.fresh("sensor_001")
			p.Payload = append(p.Payload, bytes.Repeat([]byte(" "), 2000)...)
			g.send(p)
			return fmt.Sprint(strings.Contains(host.last(), "too_large"))
		},
		"publish.rate":    admitted,
		"publish.burst":   admitted,
		"publish.issuers": func() string { return fmt.Sprint(len(host.issuers)) },
		"publish.max_bad_signatures": func() string {
			before := len(host.kicked)
			p := g.fresh(badDevice)
			badDevice = "bad_after"
			p.Payload = bytes.Replace(p.Payload, []byte(`"t":22`), []byte(`"t":23`), 1)
			g.send(p)
			g.Tick()
			return fmt.Sprint(len(host.kicked) - before)
		},
		"acl.others":               func() string { return fmt.Sprint(host.others) },
		"acl.unknown_certificates": func() string { return fmt.Sprint(stranger("dashboard"), stranger("someone")) },
		"acl.certificates":         func() string { return fmt.Sprint(stranger("dashboard"), stranger("someone")) },
		"command.keys_file":        asks("POST", "/v1/devices/keyed/commands", "1", func(r *http.Response) string { return r.Status }),
		"registry.key_file": func() string {
			return fmt.Sprint(g.send(g.fresh("encrypted")) == gate.Route)
		},
		"backend.bearer_token_file":   sent(func(r *http.Request) string { return r.Header.Get("Authorization") }),
		"backend.signing_secret_file": sent(func(r *http.Request) string { return fmt.Sprint(r.Header.Get("webhook-signature") != "") }),
		"backend.ca_file":             sent(func(*http.Request) string { return "something" }),
		"backend.cert_file":           sent(func(r *http.Request) string { return r.TLS.PeerCertificates[0].SerialNumber.String() }),
		"http.token_file":             asked(func(r *http.Response) string { return r.Status }),
		"http.cert_file":              asked(func(r *http.Response) string { return r.TLS.PeerCertificates[0].SerialNumber.String() }),
		"audit.file":                  recorded,
		"audit.max_bytes": func() string {
			recorded()
			info, err := os.Stat(filepath.Join(dir, "audit.jsonl"))
			return fmt.Sprint(err == nil && info.Size() > 100_000)
		},
		"audit.keep": recorded,
	}
	for _, s := range config.Settings() {
		change, known := changedSettings[s.Key]
		if !known {
			t.Errorf("%s: write another value of it into changedSettings", s.Key)
		}
		if change == nil {
			continue
		}
		now := func() string { return "" }
		if s.Reload != config.Restart {
			if now = observers[s.Key]; now == nil {
				t.Errorf("%s: add to observers how to see that it is in force", s.Key)
				continue
			}
		}
		before := now()
		reload(base.with(change))
		if later := host.count("need a restart") > 0; later != (s.Reload == config.Restart) {
			t.Errorf("%s: the table says %d; log: %q", s.Key, s.Reload, host.lines)
		}
		switch renewed := host.count("were renewed settings=" + s.Key); {
		case s.Reload == config.Restart && host.count("settings="+s.Key+" ")+host.count("settings="+s.Key) == 0:
			t.Errorf("%s is not named: %q", s.Key, host.lines)
		case s.Reload == config.Renewed && renewed != 1, s.Reload != config.Renewed && renewed > 0:
			t.Errorf("%s: %d times renewed: %q", s.Key, renewed, host.lines)
		}
		if s.Reload == config.Restart {
			continue
		}
		g.until(s.Key+" in force", func() bool { return now() != before })
		reload(base)
		if s.Key == "registry.key_file" { // the one that cannot be taken away
			if host.count("need a restart") != 1 || now() == before {
				t.Errorf("%s is taken away: %q", s.Key, host.lines)
			}
			base["registry.key_file"] = `"registry.key"`
		} else if !strings.HasPrefix(s.Key, "audit.") { // whose files stay
			g.until(s.Key+" as before", func() bool { return now() == before })
		}
	}
	for key := range changedSettings {
		if !slices.ContainsFunc(config.Settings(), func(s config.Setting) bool { return s.Key == key }) {
			t.Errorf("changedSettings: %s is not in the table of settings", key)
		}
	}
}

// addKeyed registers a device with a public key.
func addKeyed(t *testing.T, database, id string) {
	t.Helper()
	key, err := publickey.Of(testkit.PrivateKey(t, string(publickey.Ed25519)).Public())
	if err != nil {
		t.Fatal(err)
	}
	store, err := registry.OpenStore(database)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Register(t.Context(), registry.Registration{ID: id, Key: key}), store.Close()); err != nil {
		t.Fatal(err)
	}
}

// selfSigned makes a certificate for localhost that is its own CA, and its key, in PEM.
func selfSigned(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint(serial)}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
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
