package plugin

import (
	"errors"
	"fmt"
	"log/slog"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
)

// Others is the answer to the broker where the gateway does not decide on access.
type Others int

// The answers. Mosquitto 2.0 has no neutral one: with OthersAllow the broker does not ask an acl_file and later plugins, and
// with OthersDefer, where there is neither, it denies.
const (
	OthersDefer  Others = iota // to the acl_file or another plugin
	OthersAllow                // access is allowed, and nothing else is asked
	OthersIgnore               // as if the plugin were not loaded: Mosquitto 2.1
)

func (o Others) String() string {
	switch o {
	case OthersAllow:
		return "allow"
	case OthersIgnore:
		return "ignore"
	default:
		return "defer"
	}
}

// resolveOthers chooses the answer by [acl] others and returns the reason for the log. conf is the broker's configuration, or
// nil with the error of reading it. Any doubt means defer: that may deny too much, but never allows too much.
func resolveOthers(setting string, is2_1 bool, conf *brokerconf.Config, err error) (o Others, why string) {
	switch {
	case is2_1:
		return OthersIgnore, "Mosquitto 2.1 lets a plugin ignore a question"
	case setting == config.OthersDefer:
		return OthersDefer, "set in bouncer.toml"
	case setting == config.OthersAllow:
		return OthersAllow, "set in bouncer.toml"
	case err != nil:
		return OthersDefer, err.Error()
	}
	self, err := brokerconf.SelfPath()
	if err != nil {
		return OthersDefer, fmt.Sprintf("this plugin's own file is not known: %v", err)
	}
	if line, found := conf.OtherAccessControl(self); found {
		return OthersDefer, line.String()
	}
	return OthersAllow, "the broker's configuration has neither acl_file nor another plugin"
}

// A brokerSettings has the broker's own configuration, and what follows from it. Broker's thread only.
type brokerSettings struct {
	host Host
	file string // bouncer.toml
	log  *slog.Logger
	// conf is the configuration at the start, with every acl_file since; nil: it could not be read.
	conf   *brokerconf.Config
	err    error  // why it could not be read last time
	others string // [acl] others
}

// read reads the broker's configuration.
func (b *brokerSettings) read() { b.conf, b.err = brokerconf.Running() }

// reread reads the broker's configuration again. An acl_file that was ever there counts as still there: the broker keeps it if
// anything in its new configuration is wrong, and only the broker knows whether anything is.
func (b *brokerSettings) reread() {
	if b.conf == nil {
		b.err = errors.New("the broker's configuration could not be read at the start")
		return
	}
	var conf *brokerconf.Config
	if conf, b.err = brokerconf.Running(); b.err == nil {
		b.conf = b.conf.Reloaded(conf)
	}
}

// settleOthers sets and logs the answer where the gateway does not decide on access.
func (b *brokerSettings) settleOthers() {
	conf := b.conf
	if b.err != nil {
		conf = nil
	}
	others, why := resolveOthers(b.others, b.host.Is2_1(), conf, b.err)
	b.host.SetOthers(others)
	if b.err != nil && others == OthersDefer && b.others == config.OthersAuto {
		b.log.Warn("it is not known whether an acl_file or another plugin decides on topics that are not gated; if none does, the broker "+
			"denies access to them: make its configuration readable for its user, or set [acl] others in bouncer.toml", "error", why)
	}
	b.log.Info("access to topics that are not gated", "others", others, "why", why)
}

// listenerSettings reports whether the broker has per_listener_settings true, or may have.
func (b *brokerSettings) listenerSettings() bool { return b.conf == nil || b.conf.PerListenerSettings }

// asksSessions reports whether the broker can be made to show which sessions exist: see gate.Settings.
func (b *brokerSettings) asksSessions() bool {
	return !b.listenerSettings() && !b.conf.Has("connection")
}

// namesAreCertificates reports whether every listener requires certificates and takes user names from them, or may do so.
func (b *brokerSettings) namesAreCertificates() bool {
	return b.conf == nil || b.conf.NamesAreCertificates()
}

// userNameIsClientID reports whether any listener of the broker uses the user name of a client as its client id. The broker
// reads this setting only at its start.
func (b *brokerSettings) userNameIsClientID() bool {
	return b.conf != nil && b.conf.Bool("use_username_as_clientid")
}

// check looks in the broker's configuration for what would bypass the gate: an error for what always does, a line in the log
// for what may be intended.
func (b *brokerSettings) check(issuers bool) error {
	self, err := brokerconf.SelfPath()
	if err != nil || b.conf == nil {
		return nil // logged already
	}
	if line, found := b.conf.PluginBefore(self); found && !b.host.Is2_1() {
		return fmt.Errorf("%s: comes before this plugin, and what it allows would never be checked; put the lines of this plugin first", line)
	}
	if line, found := b.conf.IncomingBridge(); found && b.conf.PerListenerSettings && !(b.host.Is2_1() && b.conf.LoadedForAll(self)) {
		return fmt.Errorf("%s: with per_listener_settings true no plugin checks the messages that a bridge brings in; set per_listener_settings false, or let the bridge bring nothing in (Mosquitto 2.1 asks a plugin that global_plugin loads)", line)
	}
	b.warnOfIssuers(issuers)
	for _, l := range b.conf.Unguarded(self) {
		b.log.Warn("per_listener_settings is true and this listener has no plugin line: its clients publish to gated topics "+
			"unchecked; add the plugin lines to it", "listener", l.String())
	}
	return nil
}

// share lets one more plugin line use this gateway: with per_listener_settings each listener has its own. The error says
// why the line is not allowed.
func (b *brokerSettings) share(configFile string) error {
	switch {
	case b.conf == nil || !b.conf.PerListenerSettings:
		return fmt.Errorf("the plugin is loaded twice%s; remove one of the plugin lines (without per_listener_settings one serves every listener)", b.ownLines())
	case configFile != b.file:
		return fmt.Errorf("plugin_opt_config_file is %q for one listener and %q for another; all listeners share one gateway, so name the same file", b.file, configFile)
	}
	return nil
}

// ownLines returns where the broker's configuration loads this plugin, for an error message.
func (b *brokerSettings) ownLines() (where string) {
	self, err := brokerconf.SelfPath()
	if err != nil || b.conf == nil {
		return ""
	}
	for _, line := range b.conf.LinesOf(self) {
		where += fmt.Sprintf(", at %s:%d", line.File, line.Number)
	}
	return where
}

// useIssuers makes the broker's side check that [publish] issuers signed the devices' certificates. The error says why one of
// them cannot be used; then the previous ones stay in force.
func useIssuers(host Host, c *config.Config) error {
	if !host.SetIssuers(c.Publish.Issuers) {
		return fmt.Errorf("%s: OpenSSL cannot read one of the certificates, or its key; create them again", c.Where("publish.issuers"))
	}
	return nil
}

// warnOfIssuers logs, where [publish] issuers is not set, that another CA than the devices' can issue certificates in the name
// of a device. Where all listeners trust the same file this cannot be: the broker verifies every certificate with that file.
func (b *brokerSettings) warnOfIssuers(set bool) {
	if set || b.conf == nil {
		return
	}
	if one, other, differ := b.conf.DifferentAuthorities(); differ {
		b.log.Warn("listeners trust different CAs, and each of those can issue a certificate in the name of any device; "+
			"set [publish] issuers to the certificates of the CAs that sign devices'", "one", one.String(), "other", other.String())
	}
}
