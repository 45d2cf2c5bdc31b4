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
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Limits of a configuration; beyond them reading it is an error.
const (
	maxFileBytes = 1 << 20
	maxFiles     = 64
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
	// option config_file alone.
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

// readFiles reads the configuration files one after the other into one
// configuration, as the broker does when it is given several.
func readFiles(paths []string) (*Config, error) {
	c := new(Config)
	for _, path := range paths {
		if err := c.readFile(path, false); err != nil {
			return nil, fmt.Errorf("broker configuration: %w", err)
		}
	}
	return c, nil
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

// OtherAccessControl returns the first line by which something else than the
// plugin whose library is the file self takes part in access control: any
// acl_file, and any other plugin, loaded for all listeners or for one, whatever
// it does. The result is false if there is no such line.
//
// A line names self if it leads to the same file, by whatever links, or has the
// same path: the file may have been replaced since the broker loaded it. A name
// without a slash, which the dynamic linker looks up, is compared with the last
// element of self.
//
// A broker that has been told to reload may still be using what it was started
// with; see [Config.Reloaded].
func (c *Config) OtherAccessControl(self string) (Line, bool) {
	for _, l := range c.lines {
		if l.Key == "acl_file" || namesLibrary(l.Key) && !sameLibrary(newPlugin(l).Path, self) {
			return l, true
		}
	}
	return Line{}, false
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

func (c *Config) readFile(path string, included bool) error {
	if len(c.Files) == maxFiles {
		return fmt.Errorf("%s: more than %d files are not read", path, maxFiles)
	}
	text, err := readText(path)
	if err != nil {
		return err
	}
	c.Files = append(c.Files, path)
	return c.parse(path, text, included)
}

func readText(path string) (text []byte, err error) {
	// Without O_NONBLOCK, opening a FIFO would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file, it cannot be read a second time", path)
	}
	text, err = io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFileBytes {
		return nil, fmt.Errorf("%s: longer than %d bytes, not read", path, maxFileBytes)
	}
	return text, nil
}

// readDir reads the files of a directory that end in .conf, hidden ones too, in
// the broker's order.
func (c *Config) readDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if name := e.Name(); len(name) > len(".conf") && strings.HasSuffix(name, ".conf") {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, compareNames)
	for _, name := range names {
		// Not filepath.Join: without its ".." a path may lead elsewhere.
		if err := c.readFile(dir+"/"+name, true); err != nil {
			return err
		}
	}
	return nil
}

// compareNames is the order in which the broker reads the files of a directory:
// byte by byte without regard to letter case, an upper-case letter before the
// same letter in lower case.
func compareNames(a, b string) int {
	for i := range min(len(a), len(b)) {
		if d := int(upper(a[i])) - int(upper(b[i])); d != 0 {
			return d
		}
		if d := int(a[i]) - int(b[i]); d != 0 {
			return d
		}
	}
	return len(a) - len(b)
}

func upper(b byte) byte {
	if 'a' <= b && b <= 'z' {
		b -= 'a' - 'A'
	}
	return b
}

// blanks is what the broker trims from values, C's isspace.
const blanks = " \t\n\v\f\r"

// parse adds the settings of one file. The current listener and the current
// plugin are the file's own: an included file begins without either, and leaves
// those of the file that includes it alone.
func (c *Config) parse(file string, text []byte, included bool) error {
	listener, plugin := NoListener, -1
	number := 0
	for raw := range bytes.Lines(text) {
		number++
		if bytes.IndexByte(raw, 0) >= 0 {
			// The broker silently drops the rest of the file, from here or from
			// some lines on.
			return fmt.Errorf("%s:%d: a NUL byte ends the broker's reading; remove it", file, number)
		}
		if raw[0] == '#' || raw[0] == '\r' {
			continue
		}
		// As strtok does: blanks in front do not count, and one blank ends the
		// name.
		key, rest, _ := strings.Cut(strings.TrimLeft(strings.TrimRight(string(raw), "\r\n"), " "), " ")
		if key == "" {
			continue
		}
		if err := checkKey(key); err != nil {
			return fmt.Errorf("%s:%d: %w", file, number, err)
		}
		l := Line{File: file, Number: number, Key: key, Value: strings.Trim(rest, blanks), Listener: listener}
		switch {
		case isSecret(key):
			l.Value = Redacted

		case isOption(key):
			l.Value = optionValue(key, rest)
			if plugin >= 0 {
				c.Plugins[plugin].Options = append(c.Plugins[plugin].Options, l)
			}

		case key == "acl_file":
			c.ACLFiles = append(c.ACLFiles, l)

		case namesLibrary(key):
			plugin = len(c.Plugins)
			c.Plugins = append(c.Plugins, newPlugin(l))

		case key == "plugin_use":
			plugin = slices.IndexFunc(c.Plugins, func(p Plugin) bool { return p.Name != "" && p.Name == l.Value })
			if plugin >= 0 {
				c.Plugins[plugin].Uses = append(c.Plugins[plugin].Uses, l)
			}

		case key == "listener":
			listener = len(c.Listeners)
			l.Listener = listener
			c.Listeners = append(c.Listeners, newListener(l))

		case key == "port" || key == "bind_address":
			l.Listener = NoListener // they set up the default listener, wherever they stand

		case key == "per_listener_settings":
			word, _, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
			switch word {
			case "true", "1":
				c.PerListenerSettings = true
			case "false", "0":
				c.PerListenerSettings = false
			default:
				return fmt.Errorf("%s:%d: per_listener_settings: %q is neither true nor false", file, number, word)
			}
		}
		c.lines = append(c.lines, l)

		// In an included file the broker passes over include_dir (2.0) or
		// refuses to start (2.1).
		if key == "include_dir" && !included {
			// The broker takes the directory with the blanks around it.
			if rest == "" {
				return fmt.Errorf("%s:%d: include_dir: name a directory", file, number)
			}
			if err := c.readDir(rest); err != nil {
				return fmt.Errorf("%s:%d: include_dir: %w", file, number, err)
			}
		}
	}
	return nil
}

// checkKey refuses names that no setting of the broker has. The most common are
// a tab where only a blank separates, and a comment that does not begin its
// line. What follows in the line, a password perhaps, is not quoted.
func checkKey(key string) error {
	if isOption(key) {
		return nil // whatever the plugin's author chose
	}
	for i, r := range key {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '_', r == '.', r == '-':
			continue
		case i == 0 && r == '#':
			return errors.New("the broker takes '#' for a comment only as the first character of the line")
		case r == '\t':
			return fmt.Errorf("a tab after %q: the broker separates setting and value by blanks alone", key[:i])
		default:
			return fmt.Errorf("%q after %q in the name of a setting: the broker does not accept it", r, key[:i])
		}
	}
	return nil
}

func namesLibrary(key string) bool {
	switch key {
	case "plugin", "auth_plugin", "global_plugin", "plugin_load":
		return true
	}
	return false
}

func isOption(key string) bool {
	return strings.HasPrefix(key, "plugin_opt_") || strings.HasPrefix(key, "auth_opt_")
}

func isSecret(key string) bool {
	switch key {
	case "password", "remote_password", "local_password", "bridge_psk", "tls_engine_kpass_sha1":
		return true
	}
	return false
}

func optionValue(key, rest string) string {
	switch key {
	case "plugin_opt_config_file", "auth_opt_config_file":
		return strings.TrimLeft(rest, " \t")
	}
	return Redacted
}

func newPlugin(l Line) Plugin {
	if l.Key != "plugin_load" {
		return Plugin{Line: l, Path: l.Value}
	}
	name, path, _ := strings.Cut(l.Value, " ")
	return Plugin{Line: l, Name: name, Path: strings.Trim(path, blanks)}
}

// Has reports whether there is a setting of this name anywhere.
func (c *Config) Has(key string) bool {
	for range c.Lines(key) {
		return true
	}
	return false
}

// LinesOf returns the lines that load the plugin whose library is the file self.
func (c *Config) LinesOf(self string) (lines []Line) {
	for _, p := range c.Plugins {
		if sameLibrary(p.Path, self) {
			lines = append(lines, p.Line)
		}
	}
	return lines
}

// IncomingBridge returns the first line by which a bridge of the broker's own brings messages in. The result is false
// if there is no such line.
func (c *Config) IncomingBridge() (Line, bool) {
	for l := range c.Lines("topic") {
		if words := strings.Fields(l.Value); len(words) > 1 && (words[1] == "in" || words[1] == "both") {
			return l, true
		}
	}
	return Line{}, false
}

// PluginBefore returns the first line that loads another plugin before the one whose library is the file self, for the
// same clients: by 2.0's rules what it allows is not put to the later one. The result is false if there is no such line.
func (c *Config) PluginBefore(self string) (Line, bool) {
	for i, p := range c.Plugins {
		if sameLibrary(p.Path, self) {
			continue
		}
		for _, later := range c.Plugins[i+1:] {
			if sameLibrary(later.Path, self) && (!c.PerListenerSettings || later.Listener == p.Listener) {
				return p.Line, true
			}
		}
	}
	return Line{}, false
}

// Unguarded returns the listeners whose clients the plugin whose library is the file self never gets to see, because
// PerListenerSettings is true and it is loaded for other listeners alone.
func (c *Config) Unguarded(self string) (unguarded []Listener) {
	if !c.PerListenerSettings {
		return nil
	}
	guarded := make(map[int]bool)
	for _, p := range c.Plugins {
		if !sameLibrary(p.Path, self) {
			continue
		}
		switch p.Key {
		case "global_plugin":
			return nil
		case "plugin_load":
			for _, use := range p.Uses {
				guarded[use.Listener] = true
			}
		default:
			guarded[p.Listener] = true
		}
	}
	for i, l := range c.Listeners {
		if !guarded[i] {
			unguarded = append(unguarded, l)
		}
	}
	return unguarded
}

func newListener(l Line) Listener {
	words := strings.FieldsFunc(l.Value, func(r rune) bool { return r == ' ' })
	made := Listener{Line: l}
	if len(words) > 0 {
		// As atoi does: the digits in front count.
		digits := words[0][:len(words[0])-len(strings.TrimLeft(words[0], "0123456789"))]
		made.Port, _ = strconv.Atoi(digits)
	}
	if len(words) > 1 && words[1][0] != '#' {
		made.Address = words[1]
	}
	return made
}

func sameLibrary(path, self string) bool {
	if path == "" || self == "" {
		return false
	}
	if !strings.Contains(path, "/") {
		return path == filepath.Base(self)
	}
	if path == self {
		return true
	}
	a, errA := os.Stat(path)
	b, errB := os.Stat(self)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
