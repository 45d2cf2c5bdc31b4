package config

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The values of ACL.Others.
const (
	OthersAuto  = "auto"
	OthersDefer = "defer"
	OthersAllow = "allow"
)

// The values of ACL.UnknownCertificates.
const (
	UnknownOthers = "others"
	UnknownDeny   = "deny"
)

// Bounds of ACL.Certificates.
const (
	maxCertificates = 1000
	maxCommonName   = 256 // bytes
)

// ACL is [acl]: topics that are none of the bouncer's business.
type ACL struct {
	// Others is the answer for them on Mosquitto 2.0: "defer" (an acl_file or
	// another plugin decides, without either the broker denies), "allow" (they
	// are not asked), or "auto", the default: whichever suits the broker's own
	// configuration. Mosquitto 2.1 needs neither.
	Others string
	// UnknownCertificates is what clients may do whose certificate is no
	// registered device's: "others", the default (what every client may that
	// is no device), or "deny" (nothing, unless Certificates has its name).
	UnknownCertificates string
	// Certificates are the common names of certificates, up to 1000, to which
	// UnknownCertificates does not apply: dashboards, backends, bridges. None
	// gives a device that was removed its rights back. Default none.
	Certificates []string
}

func (d *document) acl() ACL {
	return ACL{
		Others:              d.choice("acl.others", OthersAuto, OthersDefer, OthersAllow),
		UnknownCertificates: d.choice("acl.unknown_certificates", UnknownOthers, UnknownDeny),
		Certificates:        d.commonNames("acl.certificates"),
	}
}

// commonNames reads a list of common names; without it there are none.
func (d *document) commonNames(key string) (names []string) {
	const example = `["dashboard", "backend"]`
	v, set := d.value(key)
	if !set {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		d.problem(key, "is %s; write a list of common names, for example %s", kindOf(v), example)
		return nil
	}
	if len(list) > maxCertificates {
		d.problem(key, "has %d names; give %d at the most", len(list), maxCertificates)
		return nil
	}
	for _, v := range list {
		name, ok := v.(string)
		switch {
		case !ok:
			d.problem(key, "has %s in the list; write common names in quotes, for example %s", kindOf(v), example)
		case name == "" || len(name) > maxCommonName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
			d.problem(key, "%s is no common name; write 1 to %d bytes of one line of text", quote(name), maxCommonName)
		case slices.Contains(names, name):
			d.problem(key, "%s is given twice; remove one", quote(name))
		default:
			names = append(names, name)
		}
	}
	return names
}
