package check

import (
	"mosquitto-bouncer/plugin/config"
)

// checkAccess looks at what subscribers get that the plugin has not verified, and at who may subscribe.
func (k *checker) checkAccess() {
	first := k.conf.Files[0]
	if l, found := k.lastAnywhere("check_retain_source"); !found {
		k.warn(first, "check_retain_source is not set: a signed message that another client captured and retained on the device's topic before the plugin came is served; add: check_retain_source true")
	} else if !isTrue(l) {
		k.warn(at(l), "check_retain_source is off: a signed message that another client captured and retained on the device's topic before the plugin came is served; write: check_retain_source true")
	}
	if _, found := k.lastAnywhere("max_packet_size"); !found && k.before(2, 1, 0) {
		size := packetSize
		if k.toml != nil {
			size = max(size, k.toml.Publish.MaxBytes+packetRoom)
		}
		k.warn(first, "max_packet_size is not set: a client may make the broker collect 256 MiB for one message before the plugin sees it; add: max_packet_size %d", size)
	}
	if k.toml != nil && k.toml.ACL.UnknownCertificates == config.UnknownOthers && len(k.conf.ACLFiles) == 0 {
		k.warn(k.set("acl.unknown_certificates"), "acl.unknown_certificates is \"others\" and there is no acl_file: a client with a certificate of your CA that is not a registered device's reads the messages of every device; write unknown_certificates = \"deny\", with the names of dashboards and backends in certificates")
	}
}
