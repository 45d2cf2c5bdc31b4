package plugin

import (
	"errors"
	"fmt"
	"log/slog"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
)

// Others is how the broker is answered when a question of access is not the gateway's concern.
type Others int

// The answers. Mosquitto 2.0 knows none that is neutral: OthersAllow passes by an acl_file and later plugins, and
// OthersDefer, where there is neither, denies.
const (
	OthersDefer  Others = iota // to the acl_file or another plugin
	OthersAllow                // nothing else takes part in access control
	OthersIgnore               // as if the gateway were not there: Mosquitto 2.1
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

// resolveOthers settles [acl] others and returns the reason for the log. conf is the broker's configuration, or nil with
// the error that kept it from being read. Any doubt means defer: that may deny too much, and never allows too much.
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

// A brokerSettings is what is known of the broker's own configuration, and what follows from it. Broker's thread only.
type brokerSettings struct {
	host Host
	file string // bouncer.toml
	log  *slog.Logger
	// conf is the configuration at the start, with every acl_file since; nil: it could not be read.
	conf   *brokerconf.Config
	err    error  // why it could not be read at last
	others string // [acl] others
}

// read reads the broker's configuration.
func (b *brokerSettings) read() { b.conf, b.err = brokerconf.Running() }

// reread follows the broker's configuration. An acl_file that was ever there counts as still there: the broker keeps it
// where anything in its new configuration is wrong, which only it can tell.
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

// settleOthers has questions of access answered that are not the gateway's concern, and logs how.
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

// asksSessions reports whether the broker shows which sessions there are: a bridge of its own would be sent the questions,
// and with per_listener_settings it does not ask about sessions that are away.
func (b *brokerSettings) asksSessions() bool {
	return !b.listenerSettings() && !b.conf.Has("connection")
}

// namesAreCertificates reports whether every listener takes user names from certificates that it demands, or may do so.
func (b *brokerSettings) namesAreCertificates() bool {
	return b.conf == nil || b.conf.NamesAreCertificates()
}

// userNameIsClientID reports whether any listener of the broker gives clients their user name for a client id. The broker
// reads that at its start alone.
func (b *brokerSettings) userNameIsClientID() bool {
	return b.conf != nil && b.conf.Bool("use_username_as_clientid")
}

// check looks for what in the broker's configuration would go past the gate: an error for what always does, a line
// in the log for what may be meant so.
func (b *brokerSettings) check(issuers bool) error {
	self, err := brokerconf.SelfPath()
	if err != nil || b.conf == nil {
		return nil // said in the log already
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
// why the line is one too many.
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

// useIssuers has the broker's side hold devices' certificates to [publish] issuers. The error says why one of them cannot be
// used; those that were in force stay.
func useIssuers(host Host, c *config.Config) error {
	if !host.SetIssuers(c.Publish.Issuers) {
		return fmt.Errorf("%s: OpenSSL cannot read one of the certificates, or its key; create them again", c.Where("publish.issuers"))
	}
	return nil
}

// warnOfIssuers logs, where [publish] issuers is not set, that not only the devices' own CA can issue certificates in the name
// of a device. Where all listeners trust the same file there is nothing to tell apart: the broker has verified every
// certificate by it.
func (b *brokerSettings) warnOfIssuers(set bool) {
	if set || b.conf == nil {
		return
	}
	if one, other, differ := b.conf.DifferentAuthorities(); differ {
		b.log.Warn("listeners trust different CAs, and each of those can issue a certificate in the name of any device; "+
			"set [publish] issuers to the certificates of the CAs that sign devices'", "one", one.String(), "other", other.String())
	}
}
