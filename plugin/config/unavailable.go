package config

import (
	"slices"
	"strings"
)

// unavailable lists the settings whose features this version lacks. Setting one
// of them to anything but "" refuses the load: a setting that is accepted and
// does nothing is worse than none. An entry that ends in "." is a section.
var unavailable = []string{}

// refuseUnavailable reports the settings of d that are in the list.
func (d *document) refuseUnavailable(unavailable []string) {
	for _, e := range d.entries {
		listed := slices.ContainsFunc(unavailable, func(u string) bool {
			return e.key == u || strings.HasSuffix(u, ".") && strings.HasPrefix(e.key, u)
		})
		if v, set := d.lookup(e.key); listed && set && v != "" {
			d.problemAt(e.line, e.key, "not available in this version; remove the line")
			d.refused[e.key] = true
		}
	}
}
