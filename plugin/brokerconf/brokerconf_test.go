package brokerconf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// write makes the files, named relative to a new directory, and returns the
// directory. DIR in a text stands for it.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t testing.TB, files map[string]string) *Config {
	t.Helper()
	c, err := ReadFile(filepath.Join(write(t, files), "mosquitto.conf"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// brief is a line without the directory of its file.
func brief(l Line) string {
	l.File = filepath.Base(l.File)
	return l.String()
}

func TestLinesStops(t *testing.T) {
	c := read(t, map[string]string{"mosquitto.conf": "log_type error\nlog_type all\n"})
	for l := range c.Lines("log_type") {
		if l.Number != 1 {
			t.Errorf("went on to %v", l)
		}
		break
	}
}

// TestDebian reads what a Debian system has, with a listener and a plugin in
// files of their own.
func TestDebian(t *testing.T) {
	c := read(t, map[string]string{
		"mosquitto.conf": `# Local settings belong into DIR/conf.d/
#
# Every setting is described in mosquitto.conf(5).

pid_file /run/mosquitto/mosquitto.pid

persistence true
persistence_location /var/lib/mosquitto/

log_dest file /var/log/mosquitto/mosquitto.log

include_dir DIR/conf.d
`,
		"conf.d/README": "acl_file none of this counts\n",
		"conf.d/bouncer.conf": `per_listener_settings false
plugin ` + self + `
plugin_opt_config_file /etc/mosquitto-bouncer/bouncer.toml 
plugin_opt_other x y
`,
		"conf.d/tls.conf": `allow_anonymous false
listener 8883 0.0.0.0 # all of IPv4
cafile /etc/mosquitto/ca.crt
use_identity_as_username true
port 1883
listener 0 /run/mosquitto/socket
listener 8884
listener 9001	127.0.0.1
`,
	})
	if l, found := c.OtherAccessControl(self); found {
		t.Errorf("other access control: %v", l)
	}
	if len(c.Files) != 3 || c.PerListenerSettings || len(c.ACLFiles) != 0 {
		t.Errorf("got %+v", c)
	}
	if len(c.Plugins) != 1 {
		t.Fatalf("plugins %v", c.Plugins)
	}
	p := c.Plugins[0]
	if p.Key != "plugin" || p.Name != "" || p.Path != self || p.Number != 2 || len(p.Uses) != 0 || len(p.Options) != 2 ||
		p.Options[0].Value != "/etc/mosquitto-bouncer/bouncer.toml " ||
		p.Options[1].Key != "plugin_opt_other" || p.Options[1].Value != Redacted {
		t.Errorf("plugin %+v", p)
	}
	var listeners []string
	for i, l := range c.Listeners {
		if l.Listener != i {
			t.Errorf("listener %d has index %d", i, l.Listener)
		}
		listeners = append(listeners, fmt.Sprintf("%d %q", l.Port, l.Address))
	}
	if want := []string{`8883 "0.0.0.0"`, `0 "/run/mosquitto/socket"`, `8884 ""`, `9001 ""`}; !slices.Equal(listeners, want) {
		t.Errorf("listeners %q, want %q", listeners, want)
	}
	for key, want := range map[string]int{"include_dir": NoListener, "plugin": NoListener, "allow_anonymous": NoListener, "use_identity_as_username": 0, "port": NoListener} {
		got := slices.Collect(c.Lines(key))
		if len(got) != 1 || got[0].Listener != want {
			t.Errorf("%s: %+v, want listener %d", key, got, want)
		}
	}
}

func TestPerListenerSettings(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                  false,
		"per_listener_settings true":        true,
		"per_listener_settings  true # c\n": true,
		"per_listener_settings 1\n":         true,
		"per_listener_settings true\nper_listener_settings false\n": false,
		"per_listener_settings 0\nper_listener_settings true\r\n":   true,
		"per_listener_settings true\ninclude_dir DIR/d\n":           false,
		"include_dir DIR/d\nper_listener_settings true\n":           true,
	} {
		c := read(t, map[string]string{"mosquitto.conf": text, "d/a.conf": "per_listener_settings false\n"})
		if c.PerListenerSettings != want {
			t.Errorf("%q: got %v", text, c.PerListenerSettings)
		}
	}
}

func TestReloaded(t *testing.T) {
	start := read(t, map[string]string{"mosquitto.conf": "per_listener_settings true\nplugin " + self + "\nlistener 1\n"})
	same := read(t, map[string]string{"mosquitto.conf": "plugin " + self + "\n"})
	acl := read(t, map[string]string{"acl.conf": "", "mosquitto.conf": "\nacl_file /x\n"})
	acls := read(t, map[string]string{"mosquitto.conf": "acl_file /x\nacl_file /y\n"})
	plugin := read(t, map[string]string{"mosquitto.conf": "plugin /x.so\n"})
	for _, test := range []struct {
		name  string
		steps []*Config
		want  string
		acls  int
	}{
		{"as before", []*Config{start, same}, "", 0},
		{"acl_file added", []*Config{start, acl}, "mosquitto.conf:2: acl_file /x", 1},
		{"acl_file removed", []*Config{acl, same}, "mosquitto.conf:2: acl_file /x", 1},
		{"acl_file moved, then another", []*Config{start, acl, acls, acl}, "mosquitto.conf:2: acl_file /x", 2},
		{"plugin added: it is not loaded", []*Config{start, plugin}, "", 0},
		{"plugin removed: it stays", []*Config{plugin, same}, "mosquitto.conf:1: plugin /x.so", 0},
	} {
		c := test.steps[0]
		for _, next := range test.steps[1:] {
			c = c.Reloaded(next)
		}
		got := ""
		if l, found := c.OtherAccessControl(self); found {
			got = brief(l)
		}
		if got != test.want || len(c.ACLFiles) != test.acls {
			t.Errorf("%s: got %q and %v, want %q", test.name, got, c.ACLFiles, test.want)
		}
		if c.PerListenerSettings != test.steps[0].PerListenerSettings || len(c.Listeners) != len(test.steps[0].Listeners) {
			t.Errorf("%s: not the listeners of the start", test.name)
		}
	}
	if l, found := start.OtherAccessControl(self); found || len(start.ACLFiles) != 0 || len(start.Files) != 1 {
		t.Errorf("Reloaded changed its receiver: %v", l)
	}
}
