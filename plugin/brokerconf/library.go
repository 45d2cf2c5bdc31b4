package brokerconf

import (
	"os"
	"path/filepath"
	"strings"
)

func namesLibrary(key string) bool {
	switch key {
	case "plugin", "auth_plugin", "global_plugin", "plugin_load":
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

// LoadedForAll reports whether a global_plugin line loads the plugin whose
// library is the file self, for every client whatever per_listener_settings is.
// Mosquitto knows that setting from 2.1 on.
func (c *Config) LoadedForAll(self string) bool {
	for _, l := range c.LinesOf(self) {
		if l.Key == "global_plugin" {
			return true
		}
	}
	return false
}
