package config

import (
	"reflect"
	"slices"
	"strings"
)

// A Setting is one row of the table of settings.
//
// Everything that is known of settings comes from the table: what Load reads and refuses, what a reload takes over, the
// file bouncer.toml.example, and the tables in docs/configuration.md and bouncer.toml(5).
type Setting struct {
	// Key is the setting's name with its section: "publish.tolerance".
	Key string
	// Reload is when a changed value takes effect.
	Reload Reload
	// Text is one sentence of Markdown, without a capital and a full stop. `` marks code.
	Text string

	value
	// unless reports whether a change of a Live or Renewed setting needs a restart after all; nil: never.
	unless func(now, next *Config) bool
	// needs is a setting without which this one is refused: the example has it as a comment.
	needs string
}

// Reload is when a changed setting takes effect.
type Reload uint8

const (
	// Restart is the next start of the broker. It is the zero value: a running gateway takes over only what is said to be
	// safe.
	Restart Reload = iota
	// Live is SIGHUP.
	Live
	// Renewed is SIGHUP, for the secrets and certificates of connections: what counts is not the file's name but what it
	// holds.
	Renewed
)

// A value is how a setting is read, and what documents say of its value. It is bound to a field of one Config.
type value struct {
	field any // a pointer to the field
	// read reads the setting into the field, or the default where it is not set or not right; nil: a function in rules.go
	// reads it, together with others.
	read func(d *document, key string)
	// equal compares two fields; nil: reflect.DeepEqual.
	equal func(a, b any) bool

	kind      string // "duration", "integer, requests"; Markdown
	byDefault string // in TOML
	limits    string // "1s to 24h"; "": none
}

// limited is v with other words on its limits.
func (v value) limited(words string) value {
	v.limits = words
	return v
}

// and is v with more words on its limits.
func (v value) and(words string) value {
	v.limits += words
	return v
}

func (v value) same(other value) bool {
	if v.equal != nil {
		return v.equal(v.field, other.field)
	}
	return reflect.DeepEqual(v.field, other.field)
}

func (v value) take(other value) {
	reflect.ValueOf(v.field).Elem().Set(reflect.ValueOf(other.field).Elem())
}

// section returns the part of the key before the dot; "" for a setting at the top of the file.
func (s *Setting) section() string {
	section, _, nested := strings.Cut(s.Key, ".")
	if !nested {
		return ""
	}
	return section
}

// name returns the part of the key behind the dot.
func (s *Setting) name() string {
	return s.Key[strings.IndexByte(s.Key, '.')+1:]
}

// Settings returns the table of settings, in the order of the documents.
func Settings() []Setting { return new(Config).table() }

// Changes are the keys of the settings that differ between the configuration in force and one that was read later, in the
// order of the table.
type Changes struct {
	Live    []string // take effect at once
	Renewed []string // take effect at once: secrets and certificates of connections
	Restart []string // need a restart of the broker
}

// anyOf reports whether one of the keys begins with prefix.
func anyOf(keys []string, prefix string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, prefix) })
}

// RenewsBackend reports whether a secret or certificate of [backend] is renewed.
func (c Changes) RenewsBackend() bool { return anyOf(c.Renewed, "backend.") }

// RenewsListener reports whether a secret or certificate of [http] is renewed.
func (c Changes) RenewsListener() bool { return anyOf(c.Renewed, "http.") }

// Reloaded returns c with those settings of next that a running gateway can take over, and what has changed. Where and Files
// of the result are those of next.
func (c *Config) Reloaded(next *Config) (*Config, Changes) {
	inForce := *c
	inForce.file, inForce.lines, inForce.files = next.file, next.lines, next.files
	var changes Changes
	before, from := c.table(), next.table() // some settings are parts of one value, which take replaces
	for i, s := range inForce.table() {
		reload := s.Reload
		switch {
		case before[i].same(from[i].value):
			continue
		case s.unless != nil && s.unless(c, next):
			reload = Restart
		}
		switch reload {
		case Live:
			changes.Live = append(changes.Live, s.Key)
		case Renewed:
			changes.Renewed = append(changes.Renewed, s.Key)
		case Restart:
			changes.Restart = append(changes.Restart, s.Key)
			continue
		}
		s.take(from[i].value)
	}
	return &inForce, changes
}

// Keep sets the settings of these keys back to what they are in before. c is one that Reloaded has just returned.
func (c *Config) Keep(before *Config, keys []string) {
	from := before.table()
	for i, s := range c.table() {
		if slices.Contains(keys, s.Key) {
			s.take(from[i].value)
		}
	}
}
