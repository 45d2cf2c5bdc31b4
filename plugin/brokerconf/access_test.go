package brokerconf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const self = "/usr/lib/mosquitto/mosquitto_bouncer.so"

// others are configurations of one file and the line by which something else
// than the plugin takes part in access control.
var others = []struct {
	name, text string
	want       string // "": nothing else
}{
	{"empty", "", ""},
	{"acl_file", "acl_file /etc/mosquitto/acl\n", "mosquitto.conf:1: acl_file /etc/mosquitto/acl"},
	{"no newline at the end", "\nacl_file /x", "mosquitto.conf:2: acl_file /x"},
	{"CR LF", "persistence true\r\nacl_file /x\r\n", "mosquitto.conf:2: acl_file /x"},
	{"blank in front", " acl_file /x\n", "mosquitto.conf:1: acl_file /x"},
	{"blanks around the value", "acl_file  \t/x \t\v\f\n", "mosquitto.conf:1: acl_file /x"},
	{"no comment behind a value", "acl_file /x # c\n", "mosquitto.conf:1: acl_file /x # c"},
	{"no value", "acl_file\n", "mosquitto.conf:1: acl_file"},
	{"blanks for a value", "acl_file  \n", "mosquitto.conf:1: acl_file"},
	{"first of several", "\n#\nacl_file /x\nplugin /y.so\n", "mosquitto.conf:3: acl_file /x"},
	{"of a listener", "per_listener_settings true\nlistener 8883\nacl_file /x\n", "mosquitto.conf:3: acl_file /x"},
	{"long line", "acl_file /" + strings.Repeat("x", 5000) + "\n", "mosquitto.conf:1: acl_file /" + strings.Repeat("x", 5000)},
	{"comment", "#acl_file /x\n", ""},
	{"line that begins with CR", "\racl_file /x\n", ""},
	{"CR within a line", "pid_file /x\racl_file /x\n", ""},
	{"lines of blanks", "   \n\n \n", ""},
	{"longer name", "acl_file_x /x\nxacl_file /x\n", ""},
	{"value of another setting", "pid_file acl_file /x\n", ""},
	{"what is not access control", "password_file /x\npsk_file /y\nallow_anonymous false\n", ""},
	{"this plugin", "plugin " + self + "\nplugin_opt_config_file /x\n", ""},
	{"this plugin, blanks", "plugin   " + self + "  \n", ""},
	{"this plugin for two listeners", "per_listener_settings true\nlistener 1\nplugin " + self + "\nlistener 2\nplugin " + self + "\n", ""},
	{"this plugin in 2.1", "plugin_load bouncer " + self + "\nlistener 1\nplugin_use bouncer\n", ""},
	{"this plugin in 2.1, global", "global_plugin " + self + "\n", ""},
	{"this plugin, old name of the setting", "auth_plugin " + self + "\n", ""},
	{"this plugin, looked up by the linker", "plugin mosquitto_bouncer.so\n", ""},
	{"another plugin", "plugin " + self + "\nplugin /usr/lib/mosquitto_dynamic_security.so\n", "mosquitto.conf:2: plugin /usr/lib/mosquitto_dynamic_security.so"},
	{"another plugin, old name of the setting", "auth_plugin /x.so\n", "mosquitto.conf:1: auth_plugin /x.so"},
	{"another plugin, global", "global_plugin /x.so\n", "mosquitto.conf:1: global_plugin /x.so"},
	{"another plugin, loaded by name", "plugin_load bouncer /x.so\n", "mosquitto.conf:1: plugin_load bouncer /x.so"},
	{"plugin_load without a path", "plugin_load " + self + "\n", "mosquitto.conf:1: plugin_load " + self},
	{"plugin without a path", "plugin\n", "mosquitto.conf:1: plugin"},
	{"same name in another directory", "plugin /x/mosquitto_bouncer.so\n", "mosquitto.conf:1: plugin /x/mosquitto_bouncer.so"},
	{"similar name", "plugin bouncer.so\n", "mosquitto.conf:1: plugin bouncer.so"},
	{"path and more", "plugin " + self + " x\n", "mosquitto.conf:1: plugin " + self + " x"},
}

func TestOtherAccessControl(t *testing.T) {
	for _, test := range others {
		t.Run(test.name, func(t *testing.T) {
			c := read(t, map[string]string{"mosquitto.conf": test.text})
			l, found := c.OtherAccessControl(self)
			got := ""
			if found {
				got = brief(l)
			}
			if got != test.want || found != (test.want != "") {
				t.Errorf("got %q (%v), want %q", got, found, test.want)
			}
		})
	}
}

func TestOtherAccessControlWithoutSelf(t *testing.T) {
	c := read(t, map[string]string{"mosquitto.conf": "plugin " + self + "\n"})
	if l, found := c.OtherAccessControl(""); !found || brief(l) != "mosquitto.conf:1: plugin "+self {
		t.Errorf("got %v, %v", l, found)
	}
}

func TestOtherAccessControlLinks(t *testing.T) {
	dir := write(t, map[string]string{"lib/bouncer.so": "bouncer", "lib/other.so": "other"})
	link := func(make func(old, new string) error, old, new string) {
		if err := make(filepath.Join(dir, old), filepath.Join(dir, new)); err != nil {
			t.Fatal(err)
		}
	}
	link(os.Symlink, "lib/bouncer.so", "symlink.so")
	link(os.Symlink, "symlink.so", "symlinks.so")
	link(os.Symlink, "lib", "plugins")
	link(os.Link, "lib/bouncer.so", "hard.so")
	link(os.Symlink, "lib/other.so", "bouncer.so")
	loaded := filepath.Join(dir, "lib/bouncer.so")
	for path, other := range map[string]bool{
		"lib/bouncer.so":         false,
		"symlink.so":             false,
		"symlinks.so":            false,
		"plugins/bouncer.so":     false,
		"lib/../lib//bouncer.so": false,
		"hard.so":                false,
		"lib/other.so":           true,
		"bouncer.so":             true,
		"lib/missing.so":         true,
	} {
		c := read(t, map[string]string{"mosquitto.conf": "plugin " + dir + "/" + path + "\n"})
		if _, got := c.OtherAccessControl(loaded); got != other {
			t.Errorf("%s: other = %v, want %v", path, got, other)
		}
		if _, got := c.OtherAccessControl(filepath.Join(dir, "symlink.so")); got != other {
			t.Errorf("%s, self a symbolic link: other = %v, want %v", path, got, other)
		}
	}
}

func TestUnguarded(t *testing.T) {
	const self = "/lib/bouncer.so"
	for _, c := range []struct {
		name, text string
		want       []int // ports
	}{
		{"one for all", "plugin /lib/bouncer.so\nlistener 1\nlistener 2\n", nil},
		{"one of two", "per_listener_settings true\nlistener 1\nplugin /lib/bouncer.so\nlistener 2\n", []int{2}},
		{"both", "per_listener_settings true\nlistener 1\nplugin /lib/bouncer.so\nlistener 2\nplugin /lib/bouncer.so\n", nil},
		{"another plugin", "per_listener_settings true\nlistener 1\nplugin /lib/bouncer.so\nlistener 2\nplugin /lib/other.so\n", []int{2}},
		{"global", "per_listener_settings true\nglobal_plugin /lib/bouncer.so\nlistener 1\nlistener 2\n", nil},
		{"loaded and used", "per_listener_settings true\nplugin_load b /lib/bouncer.so\nlistener 1\nlistener 2\nplugin_use b\n", []int{1}},
	} {
		path := filepath.Join(t.TempDir(), "mosquitto.conf")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		conf, err := ReadFile(path)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var got []int
		for _, l := range conf.Unguarded(self) {
			got = append(got, l.Port)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: listeners %v, want %v", c.name, got, c.want)
		}
	}
}

func TestIncomingBridge(t *testing.T) {
	for text, want := range map[string]bool{
		"listener 1\n":                              false,
		"connection a\ntopic #\n":                   false,
		"connection a\ntopic # out 1\n":             false,
		"connection a\ntopic # in 1 local/ far/\n":  true,
		"connection a\ntopic x out\ntopic # both\n": true,
	} {
		path := filepath.Join(t.TempDir(), "mosquitto.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		conf, err := ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, found := conf.IncomingBridge(); found != want || conf.Has("connection") != strings.Contains(text, "connection") {
			t.Errorf("%q: a bridge that brings messages: %v", text, found)
		}
	}
}
