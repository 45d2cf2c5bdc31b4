package main

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/plugin/registry"
)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.New("").
	Funcs(template.FuncMap{"sh": output.Shell}).
	ParseFS(templateFiles, "templates/*.tmpl"))

const (
	defaultURL    = "http://localhost:5000/device/{device_id}/data"
	caCommonName  = "mosquitto-bouncer CA"
	defaultListen = 8883
)

type initOptions struct {
	dir     string
	hosts   []string
	port    int
	plugin  string
	backend string
}

func newInit() *cobra.Command {
	var o initOptions
	c := &cobra.Command{
		Use:   "init --dir DIR",
		Short: "Make a CA, a server certificate, a registry and the configuration",
		Long: `Make everything that a broker with the plugin needs in one directory, so that
"mosquitto -c DIR/mosquitto.conf" runs: the configuration of the broker and of
the plugin, a CA, a server certificate, and an empty registry of devices.

Nothing is ever overwritten. Keys get mode 0600, other files 0640. Run as root,
it gives the files, except the CA's key, to the user mosquitto, as which the broker
runs.`,
		Example: `  bouncerctl init --dir /srv/bouncer --host broker.example.org --host 192.0.2.7`,
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.dir == "" {
				return usage(c, "--dir is missing")
			}
			if o.port < 1 || o.port > 65535 {
				return usage(c, "--port %d is not 1 to 65535", o.port)
			}
			if len(o.hosts) == 0 {
				o.hosts = defaultHosts()
			}
			if _, _, err := pki.SplitNames(o.hosts); err != nil {
				return usage(c, "--host: %v", err)
			}
			if strings.ContainsAny(o.backend, "\"\\") || strings.ContainsFunc(o.backend, unicode.IsControl) {
				return usage(c, "--backend %q is not a URL", o.backend)
			}
			return o.run(c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&o.dir, "dir", "", "the `directory`; it is made if it does not exist")
	c.Flags().StringArrayVar(&o.hosts, "host", nil, "a `name` or IP address under which devices reach the broker, for its certificate; repeatable (default localhost, 127.0.0.1, ::1 and this host's name)")
	c.Flags().IntVar(&o.port, "port", defaultListen, "the broker's TLS `port`")
	c.Flags().StringVar(&o.plugin, "plugin", "", "the "+pluginFile+" `file` (default: the one installed with bouncerctl)")
	c.Flags().StringVar(&o.backend, "backend", defaultURL, "the `URL` that payloads are posted to")
	return c
}

func (o *initOptions) run(stdout io.Writer) error {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	plugin, err := findPlugin(o.plugin)
	if err != nil {
		return err
	}
	for _, path := range []string{dir, plugin} {
		if err := fitsConf(path); err != nil {
			return err
		}
	}
	if err := refuseExisting(dir); err != nil {
		return err
	}
	owner, err := files.BrokerAccount()
	if err != nil {
		return err
	}
	var c files.Creation
	if err := o.create(&c, dir, plugin, owner); err != nil {
		return errors.Join(err, c.Undo())
	}
	o.report(stdout, dir, plugin, owner)
	return nil
}

// create makes the files; the caller undoes them if it fails.
func (o *initOptions) create(c *files.Creation, dir, plugin string, owner *files.Account) error {
	now := time.Now()
	ca, err := pki.NewCA(caCommonName, now, pki.CALifetime)
	if err != nil {
		return err
	}
	caKeyPEM, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	serverCertPEM, serverKeyPEM, err := ca.IssueServer(o.hosts, now, pki.LeafLifetime)
	if err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	conf, err := render("mosquitto.conf.tmpl", mosquittoValues{
		Self:        at(mosquittoConf),
		Port:        o.port,
		PKI:         at(pkiDir),
		Plugin:      plugin,
		Config:      at(bouncerTOML),
		Persistence: at(brokerDir) + "/",
	})
	if err != nil {
		return err
	}
	keys, err := newCommandKeys()
	if err != nil {
		return err
	}
	settings := config.Example(", but for the paths, the URL, unknown_certificates and the topic of notices. Paths are relative to this file's directory", map[string]string{
		"state_dir":                `"` + stateDir + `"`,
		"database":                 `"` + database + `"`,
		"publish.issuers":          `["` + caCert + `"]`,
		"backend.url":              `"` + o.backend + `"`,
		"acl.unknown_certificates": `"` + config.UnknownDeny + `"`,
		"command.keys_file":        `"` + commandKeys + `"`,
		"rejected.topic":           `"device/` + config.DeviceID + `/rejected"`,
	})

	// The broker may read what it needs, and write only its state: who may
	// write to a directory may replace what is in it, the configuration that
	// root starts the broker with and the CA's key among them.
	var ours *files.Account
	if owner != nil {
		ours = &files.Account{GID: owner.GID}
	}
	if err := c.Parents(dir, 0o755); err != nil {
		return err
	}
	for _, d := range []struct {
		path  string
		owner *files.Account
	}{
		{dir, ours},
		{at(pkiDir), ours},
		{at(stateDir), owner},
		{at(brokerDir), owner},
	} {
		if err := c.ExistingDirectory(d.path, 0o750, d.owner); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name    string
		content []byte
		mode    fs.FileMode
		owner   *files.Account
	}{
		{caKey, caKeyPEM, 0o600, nil},
		{caCert, ca.CertPEM(), 0o640, ours},
		{serverKey, serverKeyPEM, 0o640, ours},
		{serverCert, serverCertPEM, 0o640, ours},
		{commandKeys, keys, 0o640, ours},
		{bouncerTOML, []byte(settings), 0o640, ours},
		{mosquittoConf, conf, 0o640, ours},
		{database, nil, 0o640, ours}, // to SQLite an empty file is an empty database
	} {
		if err := c.File(at(f.name), f.content, f.mode, f.owner); err != nil {
			return err
		}
	}
	store, err := registry.OpenStore(at(database))
	if err != nil {
		return err
	}
	if err := store.Close(); err != nil {
		return err
	}
	// What the broker would refuse must not be left behind.
	_, err = config.Load(at(bouncerTOML))
	return err
}

// report says what there is now and what comes next.
func (o *initOptions) report(w io.Writer, dir, plugin string, owner *files.Account) {
	at := func(name string) string { return output.Shell(filepath.Join(dir, name)) }
	fmt.Fprintf(w, `Made in %s:
  mosquitto.conf         the broker: TLS on port %d, the plugin
  bouncer.toml           the plugin's settings
  devices.db             the registry of devices
  command-keys.toml      sign commands to devices that have a public key
  pki/server.crt, .key   for %s
  pki/ca.crt             what the devices trust
  pki/ca.key             signs devices; with it, anyone can impersonate any device
  state/, broker/        what the plugin and the broker remember

Next:
  1. The backend is %s;
     if that is not it, change [backend] url in %s
  2. Register a device:
     bouncerctl device add sensor_001 --config %s
  3. Start the broker:
     mosquitto -c %s
`, dir, o.port, strings.Join(o.hosts, ", "), o.backend, at(bouncerTOML), at(bouncerTOML), at(mosquittoConf))

	if os.Geteuid() != 0 {
		return
	}
	if owner == nil {
		fmt.Fprintf(w, "\nThere is no user %s yet, as which a broker started as root runs. When there is:\n  chgrp -R %s %s && chown %s %s %s\n",
			files.BrokerUser, files.BrokerUser, output.Shell(dir), files.BrokerUser, at(stateDir), at(brokerDir))
		return
	}
	for _, path := range []string{dir, plugin} {
		if barrier := owner.Barrier(path); barrier != "" {
			fmt.Fprintf(w, "\nThe user %s, as which a broker started as root runs, cannot get at %s because of\nthe mode or owner of %s. Change them, or use another directory.\n",
				files.BrokerUser, path, barrier)
		}
	}
}

// mosquittoValues fill mosquitto.conf.tmpl.
type mosquittoValues struct {
	Self, PKI, Plugin, Config, Persistence string
	Port                                   int
}

func render(name string, values any) ([]byte, error) {
	var b strings.Builder
	if err := templates.ExecuteTemplate(&b, name, values); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

// defaultHosts are the names of a broker on this machine.
func defaultHosts() []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	name, err := os.Hostname()
	if err != nil || slices.Contains(hosts, name) {
		return hosts
	}
	if _, _, err := pki.SplitNames([]string{name}); err != nil {
		return hosts // a host name that DNS does not allow is useless
	}
	return append(hosts, name)
}

// fitsConf refuses a path that mosquitto.conf cannot express: its values are
// the rest of the line, without quotes.
func fitsConf(path string) error {
	if !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl) || path != strings.TrimSpace(path) {
		return fmt.Errorf("mosquitto.conf cannot hold the path %q; use one without control characters and blanks at its end", path)
	}
	return nil
}

// refuseExisting names what init would have to overwrite.
func refuseExisting(dir string) error {
	var existing []string
	for _, name := range []string{mosquittoConf, bouncerTOML, database, commandKeys, caCert, caKey, serverCert, serverKey} {
		_, err := os.Lstat(filepath.Join(dir, name))
		if err == nil {
			existing = append(existing, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(existing) == 0 {
		return nil
	}
	return fmt.Errorf("%s already has %s; use another directory, or move them away", dir, strings.Join(existing, ", "))
}
