package config

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of lists.
const (
	maxCertificates  = 1000
	maxCommonName    = 256 // bytes
	maxFatalStatuses = 64
)

// commonNames reads a list of common names; without it there are none.
func (d *document) commonNames(key string) (names []string) {
	const example = `["dashboard", "backend"]`
	v, set := d.lookup(key)
	if !set {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		d.problem(key, "is %s; write a list of common names, for example %s", kindOf(v), example)
		return nil
	}
	if len(list) > maxCertificates {
		d.problem(key, "has %d names; give at most %d", len(list), maxCertificates)
		return nil
	}
	for _, v := range list {
		name, ok := v.(string)
		switch {
		case !ok:
			d.problem(key, "has %s in the list; write common names in quotes, for example %s", kindOf(v), example)
		case name == "" || len(name) > maxCommonName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
			d.problem(key, "%s is not a common name; write 1 to %d bytes of one line of text", quote(name), maxCommonName)
		case slices.Contains(names, name):
			d.problem(key, "%s is given twice; remove one", quote(name))
		default:
			names = append(names, name)
		}
	}
	return names
}

// statuses reads a list of HTTP statuses from 300 to 599, in ascending order.
func (d *document) statuses(key string) (statuses []int) {
	v, set := d.lookup(key)
	if !set {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		d.problem(key, "is %s; write a list of statuses, for example [404, 501]", kindOf(v))
		return nil
	}
	if len(list) > maxFatalStatuses {
		d.problem(key, "has %d statuses; give at most %d", len(list), maxFatalStatuses)
		return nil
	}
	for _, v := range list {
		n, ok := v.(int64)
		switch {
		case !ok:
			d.problem(key, "has %s in the list; write statuses as integers, for example [404, 501]", kindOf(v))
		case n < 300 || n > 599:
			d.problem(key, "%d is out of range; use 300 to 599", n)
		case slices.Contains(statuses, int(n)):
			d.problem(key, "%d is given twice; remove one", n)
		default:
			statuses = append(statuses, int(n))
		}
	}
	slices.Sort(statuses)
	return statuses
}
