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
