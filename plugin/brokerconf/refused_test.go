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

// refused are configurations of one file that no version of the broker accepts,
// or reads to the end.
var refused = []struct {
	name, text, want string
}{
	{"tab behind the name", "persistence true\nacl_file\t/x\n", `mosquitto.conf:2: a tab after "acl_file": the broker separates setting and value only by blanks`},
	{"tab in front", "\tacl_file /x\n", `mosquitto.conf:1: a tab after "": the broker separates setting and value only by blanks`},
	{"line of tabs", "\t\n", `mosquitto.conf:1: a tab after "": the broker separates setting and value only by blanks`},
	{"comment with blanks in front", "  # c\n", `mosquitto.conf:1: the broker takes '#' for a comment only as the first character of the line`},
	{"byte order mark", "\ufeffacl_file /x\n", `mosquitto.conf:1: '\ufeff' after "" in the name of a setting: the broker does not accept it`},
	{"upper case", "ACL_FILE /x\n", `mosquitto.conf:1: 'A' after "" in the name of a setting: the broker does not accept it`},
	{"vertical tab", "acl_file\v/x\n", `mosquitto.conf:1: '\v' after "acl_file" in the name of a setting: the broker does not accept it`},
	{"not UTF-8", "acl\xff\n", `mosquitto.conf:1: '�' after "acl" in the name of a setting: the broker does not accept it`},
	{"password behind a tab", "remote_password\tpa55\n", `mosquitto.conf:1: a tab after "remote_password": the broker separates setting and value only by blanks`},
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
		`DIR/mosquitto.conf:1: include_dir: DIR/d/a.conf:1: a tab after "x": the broker separates setting and value only by blanks`)
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
