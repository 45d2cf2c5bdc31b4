package brokerconf

import "strings"

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

// Unguarded returns the listeners whose clients the plugin whose library is the file self never gets to see, because
// PerListenerSettings is true and it is loaded only for other listeners.
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
