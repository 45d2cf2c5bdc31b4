package brokerconf

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPluginOfAnotherFile(t *testing.T) {
	c := read(t, map[string]string{
		"mosquitto.conf": "plugin_load one /1.so\nlistener 1\nplugin_opt_first x\ninclude_dir DIR/d\nplugin_opt_second x\nacl_file /x\n",
		"d/a.conf":       "plugin_opt_nobody x\nplugin_load two  /2.so \nauth_opt_third x\nlistener 2\nplugin_use one\nplugin_opt_fourth x\nplugin_use none\nplugin_opt_lost x\n",
	})
	if len(c.Plugins) != 2 || c.Plugins[1].Name != "two" || c.Plugins[1].Path != "/2.so" {
		t.Fatalf("plugins %+v", c.Plugins)
	}
	keys := func(lines []Line) (keys []string) {
		for _, l := range lines {
			keys = append(keys, l.Key)
		}
		return keys
	}
	if got := keys(c.Plugins[0].Options); !slices.Equal(got, []string{"plugin_opt_first", "plugin_opt_fourth", "plugin_opt_second"}) {
		t.Errorf("options of the first: %q", got)
	}
	if got := keys(c.Plugins[1].Options); !slices.Equal(got, []string{"auth_opt_third"}) {
		t.Errorf("options of the second: %q", got)
	}
	if uses := c.Plugins[0].Uses; len(uses) != 1 || brief(uses[0]) != "a.conf:5: plugin_use one" || uses[0].Listener != 1 {
		t.Errorf("uses %+v", uses)
	}
	if acl := c.ACLFiles[0]; acl.Listener != 0 {
		t.Errorf("an included file moved the listener: %+v", acl)
	}
}

func TestPluginBefore(t *testing.T) {
	const self = "/lib/bouncer.so"
	for _, c := range []struct {
		name, text string
		want       int // line, 0: none
	}{
		{"alone", "plugin /lib/bouncer.so\n", 0},
		{"after", "plugin /lib/bouncer.so\nplugin /lib/other.so\n", 0},
		{"before", "# first\nplugin /lib/other.so\nplugin /lib/bouncer.so\n", 2},
		{"old style before", "auth_plugin /lib/other.so\nplugin /lib/bouncer.so\n", 1},
		{"on another listener", "per_listener_settings true\nlistener 1\nplugin /lib/other.so\nlistener 2\nplugin /lib/bouncer.so\n", 0},
		{"on the same listener", "per_listener_settings true\nlistener 1\nplugin /lib/other.so\nplugin /lib/bouncer.so\n", 3},
	} {
		path := filepath.Join(t.TempDir(), "mosquitto.conf")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		conf, err := ReadFile(path)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if line, found := conf.PluginBefore(self); line.Number != c.want || found != (c.want != 0) {
			t.Errorf("%s: %v %v, want line %d", c.name, line, found, c.want)
		}
	}
}
