package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
)

// systemConf is Debian's configuration of the broker.
const systemConf = "/etc/mosquitto/mosquitto.conf"

// soonExpired is how long before its end a certificate is worth a warning.
const soonExpired = 30 * 24 * time.Hour

type checkOptions struct {
	hosts   []string
	version string // of the broker; "": ask the one that is installed
}

func newCheck(configFile *string) *cobra.Command {
	var o checkOptions
	c := &cobra.Command{
		Use:   "check [CONFIG]",
		Short: "Look for mistakes in bouncer.toml and mosquitto.conf",
		Long: `Check the configuration before the broker is started with it. CONFIG is a
mosquitto.conf, which names its bouncer.toml, or a bouncer.toml alone. Without it,
the bouncer.toml of --config is checked, with the mosquitto.conf beside it or
else ` + systemConf + `, if there is one.

Each finding is a line "FILE:LINE: what is wrong; what to do". An error keeps the
broker from starting, or devices or the gate from working; a warning may be meant
so. Options of mosquitto.conf that do not concern the plugin are not looked at.
Run it as root: whether the broker's user can read the files is checked then, and
only then. It exits with 1 if there is an error.`,
		Example: `  bouncerctl check
  bouncerctl check /srv/bouncer/mosquitto.conf --host broker.example.org`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(c, "unexpected argument %q, one configuration at a time", args[1])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			k := checker{now: time.Now(), hosts: o.hosts, version: o.version}
			if k.version == "" {
				k.version = installedBroker()
			}
			if k.version != "" && !versionForm.MatchString(k.version) {
				return usage(c, "--broker-version %q is not of the form 2.0.11", k.version)
			}
			if err := k.account(); err != nil {
				return err
			}
			toml, conf := *configFile, ""
			switch {
			case len(args) == 0:
				conf = filepath.Join(filepath.Dir(toml), mosquittoConf)
				if _, err := os.Stat(conf); errors.Is(err, fs.ErrNotExist) {
					conf = systemConf
				}
				if _, err := os.Stat(conf); errors.Is(err, fs.ErrNotExist) {
					conf = ""
				}
			case strings.HasSuffix(args[0], ".toml"):
				toml = args[0]
			default:
				toml, conf = "", args[0]
				if c.Flags().Changed("config") {
					toml = *configFile
				}
			}
			k.check(toml, conf)
			return k.report(c.OutOrStdout())
		},
	}
	c.Flags().StringArrayVar(&o.hosts, "host", nil, "a `name` or address of the broker that the certificate must be for; repeatable")
	c.Flags().StringVar(&o.version, "broker-version", "", "the broker's `version`, such as 2.0.11 (default: that of the one installed)")
	return c
}

// A finding is a mistake in a configuration.
type finding struct {
	where string // "FILE:LINE" or "FILE"
	error bool   // else a warning
	text  string // what is wrong, and what to do
}

// A checker collects findings.
type checker struct {
	now      time.Time
	hosts    []string
	version  string   // of the broker; "": not known
	broker   *account // whom the broker becomes; nil: it is us
	findings []finding
	files    []string // what was checked

	conf *brokerconf.Config
	toml *config.Config
}

func (k *checker) error(where, format string, args ...any) {
	k.findings = append(k.findings, finding{where, true, fmt.Sprintf(format, args...)})
}

func (k *checker) warn(where, format string, args ...any) {
	k.findings = append(k.findings, finding{where, false, fmt.Sprintf(format, args...)})
}

func at(l brokerconf.Line) string { return fmt.Sprintf("%s:%d", l.File, l.Number) }

func (k *checker) account() (err error) {
	k.broker, err = brokerAccount()
	return err
}

func (k *checker) check(toml, conf string) {
	if conf != "" {
		var err error
		if k.conf, err = brokerconf.ReadFile(conf); err != nil {
			where, text := conf, strings.TrimPrefix(strings.TrimPrefix(err.Error(), "broker configuration: "), conf+": ")
			if m := placedForm.FindStringSubmatch(text); m != nil {
				where, text = m[1], m[2]
			}
			k.files = append(k.files, conf)
			k.error(where, "%s; correct the path, or run this as a user who may read it", text)
		} else {
			k.files = append(k.files, k.conf.Files...)
			if named := k.plugin(); toml == "" {
				toml = named
			}
		}
	}
	if toml != "" {
		k.checkTOML(toml)
	}
	if k.conf != nil {
		k.checkBroker()
		k.checkListeners()
		k.checkTogether()
		k.checkIdentity()
		k.checkAccess()
	}
	k.checkMarks(conf)
}

// checkTOML takes over what the plugin itself would refuse.
func (k *checker) checkTOML(path string) {
	k.files = append(k.files, path)
	c, err := config.Load(path)
	if problems, ok := errors.AsType[*config.Error](err); ok {
		for _, p := range problems.Problems {
			text := p.Text
			if p.Key != "" {
				text = p.Key + ": " + text
			}
			k.error(fmt.Sprintf("%s:%d", p.File, p.Line), "%s", text)
		}
		return
	}
	if err != nil {
		k.error(path, "%s", strings.TrimPrefix(err.Error(), path+": "))
		return
	}
	k.toml = c
	k.readable(path, path)
	for _, f := range c.Files() {
		k.readable(k.set(f.Key), f.Path)
	}
	k.writable(k.set("state_dir"), c.StateDir)
	if c.Audit.File != "" {
		k.writable(k.set("audit.file"), filepath.Dir(c.Audit.File))
	}
	k.checkRegistry()
	k.checkHTTP()
	k.checkLetters()
}

// checkRegistry finds a database that the plugin cannot take the devices from.
func (k *checker) checkRegistry() {
	where := k.set("database")
	if _, err := os.Stat(k.toml.Database); errors.Is(err, fs.ErrNotExist) {
		k.error(where, "%s does not exist; bouncerctl device add makes it, or correct the path", k.toml.Database)
		return
	}
	before := len(k.findings)
	if k.readable(where, k.toml.Database); len(k.findings) > before {
		return
	}
	if k.checkWAL(where, k.toml.Database) {
		return
	}
	key, err := registryKey(k.toml)
	if err == nil {
		err = registry.Check(context.Background(), k.toml.Database, registry.WithKey(key))
	}
	if err != nil {
		k.error(where, "%s", strings.TrimPrefix(err.Error(), "device database: "))
	}
}

// writable finds a directory in which the broker's user cannot make files.
func (k *checker) writable(where, dir string) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k.error(where, "%s does not exist; run: install -d -o %s -g %s -m 750 %s", dir, brokerUser, brokerUser, shellQuote(dir))
	case err != nil:
		k.warn(where, "%v; run this as root to see whether user %s can write there", err, brokerUser)
	case !info.IsDir():
		k.error(where, "%s is not a directory; correct the path", dir)
	case k.broker == nil:
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			k.warn(where, "%s cannot be written to: %v; run this as root to see whether user %s can", dir, err, brokerUser)
		}
	case !k.broker.may(info, 0o3):
		k.error(where, "the user %s cannot write to %s, because of its mode or owner; run: chown %s: %s && chmod u+rwx %s",
			brokerUser, dir, brokerUser, shellQuote(dir), shellQuote(dir))
	default:
		k.readable(where, dir)
	}
}

// set returns where a setting of bouncer.toml stands.
func (k *checker) set(key string) string { return strings.TrimSuffix(k.toml.Where(key), ": "+key) }

// readable finds a file that the broker's user cannot read.
func (k *checker) readable(where, path string) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		k.error(where, "%s does not exist; make it, or correct the path", path)
		return
	}
	if k.broker == nil {
		if err := unix.Access(path, unix.R_OK); err != nil {
			k.warn(where, "%s cannot be read: %v; run this as root to see whether user %s can", path, err, brokerUser)
		}
		return
	}
	if barrier := k.broker.barrier(path); barrier != "" {
		cure := "chgrp " + brokerUser + " " + shellQuote(barrier) + " && chmod g+r " + shellQuote(barrier)
		if barrier != path || info != nil && info.IsDir() {
			cure = "chmod o+x " + shellQuote(barrier)
		}
		k.error(where, "the user %s cannot read %s, because of the mode or owner of %s; run: %s", brokerUser, path, barrier, cure)
	}
}

// plugin finds the lines that load this plugin, and returns the bouncer.toml that they name.
func (k *checker) plugin() (toml string) {
	for _, p := range k.conf.Plugins {
		if !isOurs(p) {
			continue
		}
		if strings.Contains(p.Path, "/") {
			k.readable(at(p.Line), p.Path)
		}
		named := false
		for _, option := range p.Options {
			if !strings.HasSuffix(option.Key, "_config_file") {
				k.error(at(option), "%s is not an option of this plugin; remove the line, and set it in bouncer.toml", option.Key)
				continue
			}
			named = true
			if v := option.Value; strings.Trim(v, " \t\"'") != v || strings.Contains(v, " #") {
				k.error(at(option), "the broker takes the rest of the line as it stands, %q; remove blanks, quotes and comments", v)
			} else if toml == "" {
				toml = v
			}
		}
		if !named {
			k.error(at(p.Line), "no plugin_opt_config_file follows; add the line: plugin_opt_config_file %s", defaultConfig)
		}
	}
	return toml
}

// ourPlugin is where the plugin is, or where make install puts it.
func ourPlugin() string {
	path, err := findPlugin("")
	if err != nil {
		return "/usr/local/lib/" + pluginFile
	}
	return path
}

func isOurs(p brokerconf.Plugin) bool {
	return strings.HasPrefix(filepath.Base(p.Path), "mosquitto_bouncer") ||
		slices.ContainsFunc(p.Options, func(o brokerconf.Line) bool { return o.Key == "plugin_opt_config_file" })
}

// last returns the setting that is in force: the last line of the listener.
func (k *checker) last(key string, listener int) (found brokerconf.Line, ok bool) {
	for l := range k.conf.Lines(key) {
		if l.Listener == listener {
			found, ok = l, true
		}
	}
	return found, ok
}

// lastAnywhere is last for a setting of the whole broker.
func (k *checker) lastAnywhere(key string) (found brokerconf.Line, ok bool) {
	for l := range k.conf.Lines(key) {
		found, ok = l, true
	}
	return found, ok
}

func isTrue(l brokerconf.Line) bool { return l.Value == "true" || l.Value == "1" }

// before tells whether the broker is older than a version. One that is not known is taken for 2.0.11.
func (k *checker) before(major, minor, patch int) bool {
	v := k.version
	if v == "" {
		v = "2.0.11"
	}
	m := versionForm.FindStringSubmatch(v)
	return slices.Compare([]int{number(m[1]), number(m[2]), number(m[3])}, []int{major, minor, patch}) < 0
}

func number(digits string) int {
	n, _ := strconv.Atoi(digits)
	return n
}

const (
	// packetSize21 is the default of max_packet_size since Mosquitto 2.1, in bytes. Before it there was no limit.
	packetSize21 = 2_000_000
	// packetSize is what is proposed for max_packet_size, if [publish] max_bytes is not larger.
	packetSize = 1 << 20
	// packetRoom is what a packet needs beside the message: its topic, and MQTT's own bytes.
	packetRoom = 1024
)

var versionForm = regexp.MustCompile(`\A(\d+)\.(\d+)\.(\d+)\z`)

// checkBroker looks at what concerns the broker as a whole.
func (k *checker) checkBroker() {
	first := k.conf.Files[0]
	var ours []brokerconf.Plugin
	for _, p := range k.conf.Plugins {
		if isOurs(p) {
			ours = append(ours, p)
		}
	}
	perListener, _ := k.lastAnywhere("per_listener_settings")
	switch {
	case len(ours) == 0:
		k.error(first, "no plugin line loads mosquitto_bouncer.so, so nothing is checked; add: plugin %s", ourPlugin())
		return
	case len(ours) > 1 && !k.conf.PerListenerSettings:
		k.error(at(ours[1].Line), "the plugin is loaded twice; remove one of the plugin lines (without per_listener_settings one serves every listener)")
	}
	self := ours[0].Path
	if k.conf.PerListenerSettings {
		if k.before(2, 0, 15) {
			k.warn(at(perListener), "per_listener_settings true: Mosquitto before 2.0.15 then never ticks, so responses wait for the next message and revoked devices are not disconnected; set per_listener_settings false, or upgrade")
		}
		for _, p := range ours {
			if p.Listener == brokerconf.NoListener && p.Key == "plugin" {
				k.error(at(p.Line), "with per_listener_settings true, a plugin line before the first listener opens one more, without TLS, on port 1883; move it below a listener line")
			}
		}
		for _, l := range k.conf.Unguarded(self) {
			k.error(at(l.Line), "this listener has no plugin line, and per_listener_settings is true: its clients publish to gated topics unchecked; add the plugin lines to it")
		}
		if l, found := k.conf.IncomingBridge(); found && !(k.conf.LoadedForAll(self) && !k.before(2, 1, 0)) {
			k.error(at(l), "with per_listener_settings true no plugin is asked about what a bridge brings; set per_listener_settings false, or let the bridge bring nothing")
		}
	}
	if l, found := k.conf.PluginBefore(self); found && k.before(2, 1, 0) {
		k.error(at(l), "this plugin stands before mosquitto_bouncer, and what it allows would never be checked; put the lines of mosquitto_bouncer first")
	}
	if l, found := k.lastAnywhere("set_tcp_nodelay"); !found {
		k.warn(first, "set_tcp_nodelay is not set: a response waits some 40 ms behind the PUBACK; add: set_tcp_nodelay true")
	} else if !isTrue(l) {
		k.warn(at(l), "set_tcp_nodelay is off: a response waits some 40 ms behind the PUBACK; write: set_tcp_nodelay true")
	}
	if l, found := k.lastAnywhere("max_queued_messages"); found && l.Value == "0" && k.before(2, 0, 22) {
		k.error(at(l), "max_queued_messages 0: up to Mosquitto 2.0.21 every refused publish then ends the connection; remove the line, or give a number")
	}
	if l, found := k.lastAnywhere("max_packet_size"); found && k.toml != nil {
		if n, err := strconv.Atoi(l.Value); err == nil && n > 0 && n < k.toml.Publish.MaxBytes+packetRoom {
			k.warn(at(l), "max_packet_size %d leaves no room for publish.max_bytes (%d) and a topic: the broker cuts off who sends more; write at least %d",
				n, k.toml.Publish.MaxBytes, k.toml.Publish.MaxBytes+packetRoom)
		}
	} else if k.toml != nil && !found && !k.before(2, 1, 0) && k.toml.Publish.MaxBytes+packetRoom > packetSize21 {
		k.warn(first, "max_packet_size is not set, and Mosquitto 2.1 then cuts off who sends more than %d bytes: that leaves no room for publish.max_bytes (%d) and a topic; add: max_packet_size %d",
			packetSize21, k.toml.Publish.MaxBytes, k.toml.Publish.MaxBytes+packetRoom)
	}
	if l, found := k.lastAnywhere("log_dest"); found && l.Value == "stdout" && k.before(2, 1, 0) {
		k.warn(at(l), "log_dest stdout: Mosquitto 2.0 does not flush it, so lines come late or never; write: log_dest stderr")
	}
	for _, key := range []string{"acl_file", "password_file"} {
		for l := range k.conf.Lines(key) {
			k.readable(at(l), l.Value)
		}
	}
}

// checkListeners looks at each listener that the plugin guards.
func (k *checker) checkListeners() {
	ours := slices.IndexFunc(k.conf.Plugins, isOurs)
	if ours < 0 {
		return
	}
	var unguarded []int
	for _, l := range k.conf.Unguarded(k.conf.Plugins[ours].Path) {
		unguarded = append(unguarded, slices.IndexFunc(k.conf.Listeners, func(o brokerconf.Listener) bool { return o.Line == l.Line }))
	}
	forDevices := 0
	if len(k.conf.Listeners) == 0 {
		if k.checkListener(brokerconf.NoListener, k.conf.Files[0]) {
			forDevices++
		}
	}
	for i, l := range k.conf.Listeners {
		if !slices.Contains(unguarded, i) && k.checkListener(i, at(l.Line)) {
			forDevices++
		}
	}
	if forDevices == 0 {
		k.error(k.conf.Files[0], "no listener has TLS with client certificates, so no device can publish; give one certfile, keyfile, cafile, require_certificate true and use_identity_as_username true")
	}
}

// checkListener reports whether devices can come by it.
func (k *checker) checkListener(i int, where string) bool {
	certfile, tls := k.last("certfile", i)
	if anonymous, found := k.anonymous(i); found && isTrue(anonymous) {
		k.warn(at(anonymous), "allow_anonymous true lets in whoever has no certificate; what they publish to gated topics is refused, but they read along unless an acl_file keeps them from it; write: allow_anonymous false")
	}
	if !tls {
		k.warn(where, "this listener has no TLS: publishes of its clients to gated topics are refused as no_tls_identity; for devices, add certfile, keyfile, cafile, require_certificate true and use_identity_as_username true")
		return false
	}
	good := true
	for _, need := range []struct{ key, why string }{
		{"require_certificate", "no client is asked for its certificate, and what it publishes to gated topics is refused as no_tls_identity"},
		{"use_identity_as_username", "the user name is the client's own word, and what it publishes to gated topics is refused as no_tls_identity unless it is the certificate's common name"},
	} {
		if l, found := k.last(need.key, i); !found {
			k.error(where, "this listener has no %s: %s; add the line: %s true", need.key, need.why, need.key)
			good = false
		} else if !isTrue(l) {
			k.error(at(l), "%s is not true: %s; write: %s true", need.key, need.why, need.key)
			good = false
		}
	}
	_, file := k.last("cafile", i)
	if _, dir := k.last("capath", i); !file && !dir {
		k.error(where, "this listener has no cafile, so no client certificate can be verified; add: cafile FILE, with your devices' CA alone")
		good = false
	}
	for _, key := range []string{"cafile", "certfile", "keyfile", "crlfile"} {
		if l, found := k.last(key, i); found {
			k.readable(at(l), l.Value)
		}
	}
	k.checkCertificate(certfile, i)
	if ca, found := k.last("cafile", i); found {
		k.checkCA(ca)
	}
	return good
}

func (k *checker) anonymous(i int) (brokerconf.Line, bool) {
	if k.conf.PerListenerSettings {
		return k.last("allow_anonymous", i)
	}
	return k.lastAnywhere("allow_anonymous")
}

// checkCertificate looks at a server's certificate.
func (k *checker) checkCertificate(line brokerconf.Line, i int) {
	content, err := os.ReadFile(line.Value)
	if err != nil {
		return // said already
	}
	certificates := parseCertificates(content)
	if len(certificates) == 0 {
		k.error(at(line), "%s has no certificate in PEM; name the server's certificate", line.Value)
		return
	}
	cert := certificates[0]
	k.expiry(line, cert)
	if keyfile, found := k.last("keyfile", i); !found {
		k.error(at(line), "there is no keyfile for this certificate; add: keyfile FILE")
	} else if key, err := os.ReadFile(keyfile.Value); err == nil {
		if _, err := tls.X509KeyPair(content, key); err != nil && !strings.Contains(string(key), "ENCRYPTED") {
			k.error(at(keyfile), "%s is not the key of %s (%v); name the one that belongs to it", keyfile.Value, line.Value, err)
		}
	}
	if len(cert.DNSNames) == 0 && len(cert.IPAddresses) == 0 {
		k.error(at(line), "%s is for no host (it has no subject alternative name): devices that verify it do not connect; make another with the names under which they reach the broker", line.Value)
		return
	}
	for _, host := range k.hosts {
		if err := cert.VerifyHostname(host); err != nil {
			names := slices.Clone(cert.DNSNames)
			for _, ip := range cert.IPAddresses {
				names = append(names, ip.String())
			}
			k.error(at(line), "%s is not for %s but for %s: devices that come by that name do not connect; make another", line.Value, host, strings.Join(names, ", "))
		}
	}
}

func (k *checker) checkCA(line brokerconf.Line) {
	content, err := os.ReadFile(line.Value)
	if err != nil {
		return
	}
	certificates := parseCertificates(content)
	if len(certificates) == 0 {
		k.error(at(line), "%s has no certificate in PEM; name the file with your devices' CA", line.Value)
	}
	for _, cert := range certificates {
		k.expiry(line, cert)
	}
}

func (k *checker) expiry(line brokerconf.Line, cert *x509.Certificate) {
	when := cert.NotAfter.UTC().Format(time.DateOnly)
	switch {
	case k.now.After(cert.NotAfter):
		k.error(at(line), "the certificate of %q in %s expired on %s; make another", cert.Subject, line.Value, when)
	case k.now.Before(cert.NotBefore):
		k.error(at(line), "the certificate of %q in %s is not valid before %s; correct the clock, or make another", cert.Subject, line.Value, cert.NotBefore.UTC().Format(time.RFC3339))
	case k.now.Add(soonExpired).After(cert.NotAfter):
		k.warn(at(line), "the certificate of %q in %s expires on %s; make another in time", cert.Subject, line.Value, when)
	}
}

func parseCertificates(content []byte) (all []*x509.Certificate) {
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return all
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			all = append(all, cert)
		}
	}
}

// checkTogether looks at what is wrong with both files only.
func (k *checker) checkTogether() {
	if k.toml == nil || k.toml.ACL.Others != config.OthersAllow || !k.before(2, 1, 0) {
		return
	}
	for l := range k.conf.Lines("acl_file") {
		k.error(k.set("acl.others"), "acl.others: \"allow\" with the acl_file in %s: the broker never asks that file; write others = \"auto\"", at(l))
	}
}

// installedBroker asks the broker that is installed for its version; "" if there is none that answers.
func installedBroker() string {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // not in everybody's PATH
	}
	output, _ := exec.Command(path, "-h").Output() // exits with 3
	if m := regexp.MustCompile(`(?m)^mosquitto version (\d+\.\d+\.\d+)`).FindSubmatch(output); m != nil {
		return string(m[1])
	}
	return ""
}

// errFindings ends a check that has found an error.
var errFindings = errors.New("correct what is listed above")

func (k *checker) report(w io.Writer) error {
	slices.SortStableFunc(k.findings, func(a, b finding) int {
		fileA, lineA := place(a.where)
		fileB, lineB := place(b.where)
		return cmp.Or(slices.Index(k.files, fileA)-slices.Index(k.files, fileB), lineA-lineB)
	})
	k.findings = slices.Compact(k.findings) // what several listeners have in common
	bad := 0
	for _, f := range k.findings {
		kind := "warning"
		if f.error {
			kind = "error"
			bad++
		}
		fmt.Fprintf(w, "%s: %s: %s\n", f.where, kind, f.text)
	}
	fmt.Fprintf(w, "Checked %s: %s.\n", strings.Join(k.files, ", "), summary(bad, len(k.findings)-bad))
	if bad > 0 {
		return errFindings
	}
	return nil
}

// placedForm is an error that begins with its place.
var placedForm = regexp.MustCompile(`\A(\S.*?:\d+): (.*)\z`)

var placeForm = regexp.MustCompile(`\A(.*?)(?::(\d+))?\z`)

// place takes the file and the line, 0 if there is none, from where a finding is.
func place(where string) (file string, line int) {
	m := placeForm.FindStringSubmatch(where)
	return m[1], number(m[2])
}

func summary(errors, warnings int) string {
	count := func(n int, what string) string {
		if n == 1 {
			return "1 " + what
		}
		return fmt.Sprintf("%d %ss", n, what)
	}
	if errors+warnings == 0 {
		return "nothing wrong found"
	}
	return count(errors, "error") + ", " + count(warnings, "warning")
}
