// Package brokerconf reads the broker's own configuration, mosquitto.conf, as
// Mosquitto 2.0 and 2.1 read it, as far as a plugin has to know what else takes
// part in access control.
//
// It errs towards doubt. What either version accepts is read. A line whose form
// no version accepts and a file that cannot be read to its end are errors, never
// "nothing found". Settings that it does not know are kept unexamined; passwords
// and the options of plugins are not kept.
package brokerconf

import (
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Redacted stands for a value that is not kept because it may be a secret.
const Redacted = "[redacted]"

// NoListener is the Listener of a [Line] that comes before any listener line of
// its file: it is global, or belongs to the default listener.
const NoListener = -1

// Config is a broker configuration with the files it includes. It does not
// change once it is read; all methods are safe for concurrent use.
type Config struct {
	// Files are the files read, in the broker's order.
	Files []string

	// PerListenerSettings says that acl_file, plugin and the other security
	// settings belong to the listener they follow instead of to the whole
	// broker.
	PerListenerSettings bool

	ACLFiles  []Line
	Plugins   []Plugin
	Listeners []Listener

	lines []Line
}

// Line is one setting where it stands.
type Line struct {
	File       string
	Number     int // from 1
	Key, Value string
	Listener   int // index in Config.Listeners, or NoListener
}

// String returns "FILE:LINE: KEY VALUE".
func (l Line) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s:%d: %s %s", l.File, l.Number, l.Key, l.Value), " ")
}

// Listener is a listener line.
type Listener struct {
	Line
	Port    int    // 0: a Unix socket; also when the broker would find no number
	Address string // what it binds to, or the path of the Unix socket; "": every address
}

// Plugin is a line that names a plugin's library: plugin, auth_plugin,
// global_plugin or plugin_load.
type Plugin struct {
	Line
	Name string // of plugin_load, else ""
	Path string

	// Options are the plugin_opt_ and auth_opt_ lines that belong to it. The
	// value is kept, with trailing blanks as the broker keeps them, for the
	// option config_file only.
	Options []Line
	Uses    []Line // the plugin_use lines of what plugin_load named
}

// ReadFile reads the configuration file at path and the *.conf files of every
// directory that it names with include_dir. A relative path is relative to the
// working directory, as it is for the broker.
//
// At most 64 files of at most 1 MiB each are read. Errors wrap what went wrong,
// such as fs.ErrPermission for a file that only root may read, or give FILE:LINE
// of a line that the broker does not accept.
func ReadFile(path string) (*Config, error) {
	return readFiles([]string{path})
}

// Bool reports whether any line sets key, a setting that is true or false, to true.
func (c *Config) Bool(key string) bool {
	for l := range c.Lines(key) {
		if strings.HasPrefix(strings.ToLower(l.Value), "true") || strings.HasPrefix(l.Value, "1") {
			return true
		}
	}
	return false
}

// Lines yields every line with the setting key, in the broker's order.
func (c *Config) Lines(key string) iter.Seq[Line] {
	return func(yield func(Line) bool) {
		for _, l := range c.lines {
			if l.Key == key && !yield(l) {
				return
			}
		}
	}
}

// Reloaded returns the configuration by which a broker that runs with c has to
// be judged once it has read next on SIGHUP. Plugins, listeners and
// per_listener_settings stay what they were at start. An acl_file that next
// adds counts; one that next lacks counts all the same until the broker is
// started again: the broker keeps the one of a listener in any case, and every
// one when it finds an error anywhere in next, which only it can tell.
func (c *Config) Reloaded(next *Config) *Config {
	r := *c
	r.Files = slices.Clone(c.Files)
	for _, file := range next.Files {
		if !slices.Contains(r.Files, file) {
			r.Files = append(r.Files, file)
		}
	}
	r.ACLFiles = slices.Clone(c.ACLFiles)
	r.lines = slices.Clone(c.lines)
	for _, l := range next.ACLFiles {
		if !slices.ContainsFunc(r.ACLFiles, func(have Line) bool { return have.Value == l.Value }) {
			r.ACLFiles = append(r.ACLFiles, l)
			r.lines = append(r.lines, l)
		}
	}
	return &r
}

// Has reports whether there is a setting of this name anywhere.
func (c *Config) Has(key string) bool {
	for range c.Lines(key) {
		return true
	}
	return false
}
