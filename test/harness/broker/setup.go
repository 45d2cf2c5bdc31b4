package broker

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/plugin/registry"
)

// pythonSchema is the table of the Python gateway, to the letter.
const pythonSchema = `CREATE TABLE devices(device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL)`

func (b *Broker) makeCertificates() error {
	ca, err := pki.NewCA("mosquitto-bouncer test CA", time.Now(), 24*time.Hour)
	if err != nil {
		return err
	}
	b.ca = ca
	cert, key, err := ca.IssueServer([]string{"localhost", "127.0.0.1"}, time.Now(), 24*time.Hour)
	if err != nil {
		return err
	}
	b.pool.AppendCertsFromPEM(ca.CertPEM())
	for name, pem := range map[string][]byte{"ca.crt": ca.CertPEM(), "server.crt": cert, "server.key": key} {
		if err := b.WriteFile(name, pem); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) makeRegistry() error {
	if b.options.PythonDatabase {
		if err := b.SQL(pythonSchema); err != nil {
			return err
		}
	} else {
		store, err := registry.OpenStore(b.Path("devices.db"))
		if err != nil {
			return err
		}
		if err := store.Close(); err != nil {
			return err
		}
	}
	if err := b.own(b.Path("devices.db")); err != nil {
		return err
	}
	for _, id := range b.options.Devices {
		if _, err := b.AddDevice(id); err != nil {
			return err
		}
	}
	return nil
}

// HTTPToken is the bearer token with Options.HTTP.
const HTTPToken = "the-token-of-the-tests-which-is-long-enough"

// HTTPAddr is where the plugin listens with Options.HTTP, from the first start on.
func (b *Broker) HTTPAddr() string { return b.Address(1 + len(b.options.Listeners)) }

// SetSettings writes bouncer.toml again with these settings over the ones there are; SIGHUP or a restart makes the
// plugin read it.
func (b *Broker) SetSettings(settings map[string]any) error {
	all := maps.Clone(b.options.Settings)
	if all == nil {
		all = map[string]any{}
	}
	maps.Copy(all, settings)
	b.options.Settings = all
	return b.writeBouncerTOML()
}

func (b *Broker) writeBouncerTOML() error {
	if b.options.BouncerTOML != "" {
		return b.WriteFile("bouncer.toml", []byte(strings.ReplaceAll(b.options.BouncerTOML, "{dir}", b.Dir)))
	}
	backend := b.options.BackendURL
	if backend == "" {
		backend = "http://127.0.0.1:9/device/{device_id}/data" // port 9, discard: no server listens
	}
	settings := map[string]any{
		"state_dir":      b.Path("state"),
		"database":       b.Path("devices.db"),
		"publish.topics": []string{"device/+/data"},
		"backend.url":    backend,
	}
	if b.options.HTTP {
		settings["http.listen"], settings["http.token_file"] = b.HTTPAddr(), "http-token"
		if err := b.WriteFile("http-token", []byte(HTTPToken)); err != nil {
			return err
		}
	}
	maps.Copy(settings, b.options.Settings)
	document := map[string]any{}
	for key, value := range settings {
		table, name, nested := strings.Cut(key, ".")
		if !nested {
			document[key] = value
			continue
		}
		if document[table] == nil {
			document[table] = map[string]any{}
		}
		document[table].(map[string]any)[name] = value
	}
	text, err := toml.Marshal(document)
	if err != nil {
		return fmt.Errorf("bouncer.toml: %w", err)
	}
	return b.WriteFile("bouncer.toml", text)
}

func (b *Broker) writeMosquittoConf() error {
	replace := strings.NewReplacer(
		"{dir}", b.Dir, "{plugin}", b.Path("mosquitto_bouncer.so"),
		"{ca}", b.Path("ca.crt"), "{cert}", b.Path("server.crt"), "{key}", b.Path("server.key"))
	var c bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&c, format+"\n", args...) }
	line("log_dest stderr") // 2.0 does not flush standard output to a pipe
	if b.options.Quiet {
		line("log_type error\nlog_type warning\nlog_type notice\nlog_type information")
	} else {
		line("log_type all")
	}
	line("set_tcp_nodelay true")
	if b.options.PerListenerSettings {
		line("per_listener_settings true")
	}
	const anonymous = "allow_anonymous false"
	if !b.options.PerListenerSettings { // with it, the setting is a listener's
		line(anonymous)
	}
	if b.options.Persistence {
		line("persistence true\npersistence_location %s/", b.Path("persistence"))
	}
	if b.options.Conf != "" {
		line("%s", replace.Replace(b.options.Conf))
	}
	line("listener %d 127.0.0.1", b.ports[0])
	line("cafile %s\ncertfile %s\nkeyfile %s", b.Path("ca.crt"), b.Path("server.crt"), b.Path("server.key"))
	line("require_certificate true\nuse_identity_as_username true")
	if b.options.PerListenerSettings {
		line(anonymous)
	}
	if !b.options.WithoutPlugin {
		line("plugin %s", b.Path("mosquitto_bouncer.so"))
		line("plugin_opt_config_file %s", b.Path("bouncer.toml"))
	}
	if b.options.ListenerConf != "" {
		line("%s", replace.Replace(b.options.ListenerConf))
	}
	for i, listener := range b.options.Listeners {
		line("listener %d 127.0.0.1\n%s", b.ports[i+1], replace.Replace(listener))
	}
	return b.WriteFile("mosquitto.conf", c.Bytes())
}
