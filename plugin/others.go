package plugin

import (
	"fmt"

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
		return OthersIgnore, "Mosquitto 2.1 can leave a plugin out"
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

// settleOthers says in the log how questions of access are answered that are not the gateway's concern. conf is the
// broker's configuration, or nil with the error that kept it from being read.
func (g *Gateway) settleOthers(conf *brokerconf.Config, err error) {
	others, why := resolveOthers(g.others, g.host.Is2_1(), conf, err)
	g.host.SetOthers(others)
	if err != nil && others == OthersDefer && g.others == config.OthersAuto {
		g.log.Warn("it cannot be told whether an acl_file or another plugin decides on other topics; if none does, the broker "+
			"denies them all: make its configuration readable for its user, or set [acl] others in bouncer.toml", "error", why)
	}
	g.log.Info("access to other topics is settled", "others", others, "why", why)
}

// checkBroker looks for what in the broker's configuration would go past the gate: an error for what always does, a line
// in the log for what may be meant so.
func (g *Gateway) checkBroker() error {
	self, err := brokerconf.SelfPath()
	if err != nil || g.brokerConf == nil {
		return nil // said in the log already
	}
	if line, found := g.brokerConf.PluginBefore(self); found && !g.host.Is2_1() {
		return fmt.Errorf("%s: stands before this plugin, and what it allows would never be checked; put the lines of this plugin first", line)
	}
	if line, found := g.brokerConf.IncomingBridge(); found && g.brokerConf.PerListenerSettings && !(g.host.Is2_1() && g.brokerConf.LoadedForAll(self)) {
		return fmt.Errorf("%s: with per_listener_settings true no plugin is asked about what a bridge brings; set per_listener_settings false, or let the bridge bring nothing (Mosquitto 2.1 asks a plugin that global_plugin loads)", line)
	}
	g.warnOfIssuers()
	for _, l := range g.brokerConf.Unguarded(self) {
		g.log.Warn("per_listener_settings is true and this listener has no plugin line: its clients publish to gated topics "+
			"unchecked; add the plugin lines to it", "listener", l.String())
	}
	return nil
}

// Share lets one more plugin line use this gateway: with per_listener_settings each listener has its own. The error says
// why the line is one too many.
func (g *Gateway) Share(configFile string) error {
	switch {
	case g.brokerConf == nil || !g.brokerConf.PerListenerSettings:
		return fmt.Errorf("the plugin is loaded twice%s; remove one of the plugin lines (without per_listener_settings one serves every listener)", g.ownLines())
	case configFile != g.file:
		return fmt.Errorf("plugin_opt_config_file is %q for one listener and %q for another; all listeners share one gateway, so name the same file", g.file, configFile)
	}
	g.unsent.sharers++
	return nil
}

// ownLines returns where the broker's configuration loads this plugin, for an error message.
func (g *Gateway) ownLines() (where string) {
	self, err := brokerconf.SelfPath()
	if err != nil || g.brokerConf == nil {
		return ""
	}
	for _, line := range g.brokerConf.LinesOf(self) {
		where += fmt.Sprintf(", at %s:%d", line.File, line.Number)
	}
	return where
}
