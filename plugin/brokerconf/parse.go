package brokerconf

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// blanks is what the broker trims from values, C's isspace.
const blanks = " \t\n\v\f\r"

// parse adds the settings of one file. The current listener and the current
// plugin are the file's own: an included file begins without either, and leaves
// only those of the file that includes it.
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
			l.Listener = NoListener // they set up the default listener, wherever they are

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
			return fmt.Errorf("a tab after %q: the broker separates setting and value only by blanks", key[:i])
		default:
			return fmt.Errorf("%q after %q in the name of a setting: the broker does not accept it", r, key[:i])
		}
	}
	return nil
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
