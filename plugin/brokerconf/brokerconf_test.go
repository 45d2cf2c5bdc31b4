package brokerconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
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

// refused are configurations of one file that no version of the broker accepts,
// or reads to the end.
var refused = []struct {
	name, text, want string
}{
	{"tab behind the name", "persistence true\nacl_file\t/x\n", `mosquitto.conf:2: a tab after "acl_file": the broker separates setting and value by blanks alone`},
	{"tab in front", "\tacl_file /x\n", `mosquitto.conf:1: a tab after "": the broker separates setting and value by blanks alone`},
	{"line of tabs", "\t\n", `mosquitto.conf:1: a tab after "": the broker separates setting and value by blanks alone`},
	{"comment with blanks in front", "  # c\n", `mosquitto.conf:1: the broker takes '#' for a comment only as the first character of the line`},
	{"byte order mark", "\ufeffacl_file /x\n", `mosquitto.conf:1: '\ufeff' after "" in the name of a setting: the broker does not accept it`},
	{"upper case", "ACL_FILE /x\n", `mosquitto.conf:1: 'A' after "" in the name of a setting: the broker does not accept it`},
	{"vertical tab", "acl_file\v/x\n", `mosquitto.conf:1: '\v' after "acl_file" in the name of a setting: the broker does not accept it`},
	{"not UTF-8", "acl\xff\n", `mosquitto.conf:1: '�' after "acl" in the name of a setting: the broker does not accept it`},
	{"password behind a tab", "remote_password\tpa55\n", `mosquitto.conf:1: a tab after "remote_password": the broker separates setting and value by blanks alone`},
	{"per_listener_settings neither", "per_listener_settings yes\n", `mosquitto.conf:1: per_listener_settings: "yes" is neither true nor false`},
	{"per_listener_settings and a tab", "per_listener_settings true\t\n", `mosquitto.conf:1: per_listener_settings: "true\t" is neither true nor false`},
	{"per_listener_settings empty", "per_listener_settings\n", `mosquitto.conf:1: per_listener_settings: "" is neither true nor false`},
	{"include_dir empty", "include_dir \n", `mosquitto.conf:1: include_dir: name a directory`},
	{"include_dir missing", "include_dir DIR/none\n", `mosquitto.conf:1: include_dir: open DIR/none: no such file or directory`},
	{"include_dir, a blank too many in front", "include_dir  DIR\n", `mosquitto.conf:1: include_dir: open  DIR: no such file or directory`},
	{"include_dir, a blank too many behind", "include_dir DIR \n", `mosquitto.conf:1: include_dir: open DIR : no such file or directory`},
}

func TestRefused(t *testing.T) {
	for _, test := range refused {
		t.Run(test.name, func(t *testing.T) {
			wantError(t, map[string]string{"mosquitto.conf": test.text}, "DIR/"+test.want)
		})
	}
	wantError(t, map[string]string{"mosquitto.conf": "pid_file /x\x00\nacl_file /x\n"}, "DIR/mosquitto.conf:1: a NUL byte ends the broker's reading; remove it")
	wantError(t, map[string]string{"mosquitto.conf": "#\n# c\x00\n"}, "DIR/mosquitto.conf:2: a NUL byte ends the broker's reading; remove it")
}

func wantError(t *testing.T, files map[string]string, want string) {
	t.Helper()
	dir := write(t, files)
	c, err := ReadFile(filepath.Join(dir, "mosquitto.conf"))
	want = "broker configuration: " + strings.ReplaceAll(want, "DIR", dir)
	if err == nil || err.Error() != want || c != nil {
		t.Errorf("got %v, %v\nwant %s", c, err, want)
	}
}

func TestUnreadable(t *testing.T) {
	dir := write(t, map[string]string{"sub/x": "", "empty.conf": ""})
	path := filepath.Join(dir, "mosquitto.conf")

	_, err := ReadFile(path)
	if want := "broker configuration: open " + path + ": no such file or directory"; !errors.Is(err, fs.ErrNotExist) || err.Error() != want {
		t.Errorf("missing: %v", err)
	}
	_, err = ReadFile(dir)
	if want := "broker configuration: " + dir + ": not a regular file, it cannot be read a second time"; err == nil || err.Error() != want {
		t.Errorf("directory: %v", err)
	}
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = ReadFile(path) // must not wait for a writer
	if want := "broker configuration: " + path + ": not a regular file, it cannot be read a second time"; err == nil || err.Error() != want {
		t.Errorf("FIFO: %v", err)
	}

	wantError(t, map[string]string{"mosquitto.conf": "include_dir DIR/d\n", "d/sub.conf/x": ""},
		"DIR/mosquitto.conf:1: include_dir: DIR/d/sub.conf: not a regular file, it cannot be read a second time")
	wantError(t, map[string]string{"mosquitto.conf": "include_dir DIR/d\n", "d/a.conf": "x\ty\n"},
		`DIR/mosquitto.conf:1: include_dir: DIR/d/a.conf:1: a tab after "x": the broker separates setting and value by blanks alone`)
	wantError(t, map[string]string{"mosquitto.conf": strings.Repeat("#", maxFileBytes+1)},
		"DIR/mosquitto.conf: longer than 1048576 bytes, not read")

	many := map[string]string{"mosquitto.conf": "include_dir DIR/d\n"}
	for i := range maxFiles {
		many[fmt.Sprintf("d/%02d.conf", i)] = ""
	}
	wantError(t, many, "DIR/mosquitto.conf:1: include_dir: DIR/d/63.conf: more than 64 files are not read")
	delete(many, "d/63.conf")
	if c := read(t, many); len(c.Files) != maxFiles {
		t.Errorf("%d files read, want %d", len(c.Files), maxFiles)
	}
	if c := read(t, map[string]string{"mosquitto.conf": strings.Repeat("#", maxFileBytes)}); len(c.Files) != 1 {
		t.Errorf("the longest file: %v", c)
	}
}

// TestForbidden reads, without the rights of root, a file that only root may
// read.
func TestForbidden(t *testing.T) {
	dir := write(t, map[string]string{"mosquitto.conf": "acl_file /x\n", "main.conf": "include_dir DIR/d\n", "d/a.conf": ""})
	for _, open := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(open, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, closed := range []string{"mosquitto.conf", "d"} {
		if err := os.Chmod(filepath.Join(dir, closed), 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "d"), 0o755) })
	for name, want := range map[string]string{
		"mosquitto.conf": "broker configuration: open " + dir + "/mosquitto.conf: permission denied",
		"main.conf":      "broker configuration: " + dir + "/main.conf:1: include_dir: open " + dir + "/d: permission denied",
	} {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and end the thread with the goroutine
			if os.Geteuid() == 0 {
				if err := syscall.Setfsuid(65534); err != nil {
					t.Error(err)
				}
			}
			_, err := ReadFile(filepath.Join(dir, name))
			done <- err
		}()
		if err := <-done; !errors.Is(err, fs.ErrPermission) || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

func TestInclude(t *testing.T) {
	names := []string{".h.conf", "01.conf", "A.conf", "Ab.conf", "a-b.conf", "a.b.conf", "a.conf", "aB.conf", "ab.conf", "a_b.conf", "B.conf", "b.conf"}
	files := map[string]string{
		"mosquitto.conf": "include_dir DIR/d\npersistence true\n",
		"d/.conf":        "x 1\n", "d/x.CONF": "x 1\n", "d/c.conf~": "x 1\n", "d/conf": "x 1\n", "d/e.conf.d/f.conf": "x 1\n",
	}
	for _, name := range names {
		files["d/"+name] = "pid_file " + name + "\n"
	}
	c := read(t, files)
	var values []string
	for l := range c.Lines("pid_file") {
		values = append(values, l.Value)
	}
	if !slices.Equal(values, names) {
		t.Errorf("order %q\nwant  %q", values, names)
	}
	if len(c.Files) != 1+len(names) || !strings.HasSuffix(c.Files[0], "/mosquitto.conf") || !strings.HasSuffix(c.Files[3], "/d/A.conf") {
		t.Errorf("files %q", c.Files)
	}
	for l := range c.Lines("x") {
		t.Errorf("read a file that does not end in .conf: %v", l)
	}
}

func TestIncludeOneLevel(t *testing.T) {
	c := read(t, map[string]string{
		"mosquitto.conf": "include_dir DIR\ninclude_dir DIR/d\n", // the first includes mosquitto.conf itself
		"d/a.conf":       "include_dir DIR/e\nacl_file /x\n",
		"e/b.conf":       "acl_file /y\n",
	})
	var got []string
	for l := range c.Lines("include_dir") {
		got = append(got, fmt.Sprintf("%s:%d", filepath.Base(l.File), l.Number))
	}
	if want := []string{"mosquitto.conf:1", "mosquitto.conf:1", "mosquitto.conf:2", "mosquitto.conf:2", "a.conf:1"}; !slices.Equal(got, want) {
		t.Errorf("include_dir %q, want %q", got, want)
	}
	if len(c.ACLFiles) != 1 || brief(c.ACLFiles[0]) != "a.conf:2: acl_file /x" {
		t.Errorf("acl files %v", c.ACLFiles)
	}
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

func TestSecretsAreNotKept(t *testing.T) {
	c := read(t, map[string]string{"mosquitto.conf": `connection b
remote_password S3cret
password S3cret
local_password S3cret
bridge_psk S3cret
tls_engine_kpass_sha1 S3cret
plugin /x.so
auth_opt_pg_password S3cret
plugin_opt_token S3cret
`})
	if text := fmt.Sprintf("%#v", *c); strings.Contains(text, "S3cret") || strings.Count(text, Redacted) != 9 {
		t.Errorf("kept: %s", text)
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

// FuzzParse holds the parser against a plain model of the broker's: split at
// newlines, then at blanks.
func FuzzParse(f *testing.F) {
	for _, test := range others {
		f.Add([]byte(test.text))
	}
	for _, test := range refused {
		f.Add([]byte(test.text))
	}
	f.Add([]byte("per_listener_settings 1\nlistener 1 ::1\nplugin_load a /b c\nplugin_use a\nplugin_opt_abc x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 4096 {
			return
		}
		c := new(Config)
		if err := c.parse("f", text, true); err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("error without a line: %v", err)
			}
			return
		}
		var want []string // number and name
		for i, line := range strings.Split(string(text), "\n") {
			if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "\r") {
				continue
			}
			for word := range strings.SplitSeq(strings.TrimRight(line, "\r"), " ") {
				if word != "" {
					want = append(want, fmt.Sprint(i+1, " ", word))
					break
				}
			}
		}
		var got []string
		acl := false
		for _, l := range c.lines {
			got = append(got, fmt.Sprint(l.Number, " ", l.Key))
			acl = acl || l.Key == "acl_file"
			if l.Listener < NoListener || l.Listener >= len(c.Listeners) || strings.ContainsAny(l.Key, " \n") {
				t.Errorf("line %+v", l)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q\nwant %q", got, want)
		}
		if acl != (len(c.ACLFiles) > 0) {
			t.Errorf("acl files %v", c.ACLFiles)
		}
		if _, found := c.OtherAccessControl(self); acl && !found {
			t.Error("an acl_file, but no other access control")
		}
	})
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
