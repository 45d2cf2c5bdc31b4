package check

import (
	"slices"

	"mosquitto-bouncer/plugin/brokerconf"
)

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
		k.warn(at(anonymous), "allow_anonymous true lets in clients without a certificate; what they publish to gated topics is refused, but they can read messages unless an acl_file prevents it; write: allow_anonymous false")
	}
	if !tls {
		k.warn(where, "this listener has no TLS: publishes of its clients to gated topics are refused as no_tls_identity; for devices, add certfile, keyfile, cafile, require_certificate true and use_identity_as_username true")
		return false
	}
	good := true
	for _, need := range []struct{ key, why string }{
		{"require_certificate", "no client is asked for its certificate, and what it publishes to gated topics is refused as no_tls_identity"},
		{"use_identity_as_username", "the client chooses its user name, and what it publishes to gated topics is refused as no_tls_identity unless it is the certificate's common name"},
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
		k.error(where, "this listener has no cafile, so no client certificate can be verified; add: cafile FILE, with only your devices' CA")
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
