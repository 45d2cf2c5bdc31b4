package check

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
)

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
				k.error(at(option), "the broker uses the rest of the line unchanged, %q; remove blanks, quotes and comments", v)
			} else if toml == "" {
				toml = v
			}
		}
		if !named {
			k.error(at(p.Line), "no plugin_opt_config_file follows; add the line: plugin_opt_config_file %s", k.Config)
		}
	}
	return toml
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

const (
	// packetSize21 is the default of max_packet_size since Mosquitto 2.1, in bytes. Before it there was no limit.
	packetSize21 = 2_000_000
	// packetSize is what is proposed for max_packet_size, if [publish] max_bytes is not larger.
	packetSize = 1 << 20
	// packetRoom is what a packet needs in addition to the message: its topic, and MQTT's own bytes.
	packetRoom = 1024
)

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
		k.error(first, "no plugin line loads mosquitto_bouncer.so, so nothing is checked; add: plugin %s", k.Plugin)
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
			k.error(at(l), "with per_listener_settings true no plugin checks the messages that a bridge brings in; set per_listener_settings false, or let the bridge bring nothing in")
		}
	}
	if l, found := k.conf.PluginBefore(self); found && k.before(2, 1, 0) {
		k.error(at(l), "this plugin comes before mosquitto_bouncer, and what it allows would never be checked; put the lines of mosquitto_bouncer first")
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

// checkTogether looks at what is wrong with both files only.
func (k *checker) checkTogether() {
	if k.toml == nil || k.toml.ACL.Others != config.OthersAllow || !k.before(2, 1, 0) {
		return
	}
	for l := range k.conf.Lines("acl_file") {
		k.error(k.set("acl.others"), "acl.others: \"allow\" with the acl_file in %s: the broker never asks that file; write others = \"auto\"", at(l))
	}
}
