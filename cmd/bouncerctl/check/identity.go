package check

import (
	"bytes"
	"os"

	"mosquitto-bouncer/plugin/brokerconf"
)

// checkIdentity finds what lets one client pass for another: on each listener a client id that is the client's own word,
// and several CAs of which each may issue a device's certificate.
func (k *checker) checkIdentity() {
	for i := brokerconf.NoListener; i < len(k.conf.Listeners); i++ {
		where := k.conf.Files[0]
		if i == brokerconf.NoListener {
			if len(k.conf.Listeners) > 0 {
				continue
			}
		} else {
			where = at(k.conf.Listeners[i].Line)
		}
		switch l, found := k.last("use_username_as_clientid", i); {
		case !found:
			k.warn(where, "this listener has no use_username_as_clientid: its clients may connect with the client id of any other, which ends that one's connection and takes its session; add: use_username_as_clientid true (clients without a user name are then refused)")
		case !isTrue(l):
			k.warn(at(l), "use_username_as_clientid is not true: clients of this listener may connect with the client id of any other, which ends that one's connection and takes its session; write: use_username_as_clientid true (clients without a user name are then refused)")
		}
	}
	if k.toml == nil || len(k.toml.Publish.Issuers) > 0 {
		return
	}
	if a, b, differ := k.conf.DifferentAuthorities(); differ {
		k.warn(at(b), "this listener and the one at %s trust different CAs, and each of those can issue a certificate in the name of any device; set publish.issuers in bouncer.toml to the certificates of the CAs that sign devices'", at(a))
	}
	k.checkBundles()
}

// checkBundles finds listeners whose cafile holds several CAs. Each of them may issue a device's certificate.
func (k *checker) checkBundles() {
	for a := range k.conf.Authorities() {
		text, err := os.ReadFile(a.File)
		if n := bytes.Count(text, []byte("-----BEGIN CERTIFICATE-----")); err == nil && n > 1 {
			k.warn(at(a.Line), "this file holds %d CA certificates, and each of those can issue a certificate in the name of any device; set publish.issuers in bouncer.toml to the certificates of the CAs that sign devices'", n)
		}
	}
}
