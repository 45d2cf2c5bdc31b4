package brokerconf

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestConfigFiles(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", ""},
		{"mosquitto", ""},
		{"mosquitto -c /etc/mosquitto/mosquitto.conf", "/etc/mosquitto/mosquitto.conf"},
		{"mosquitto -d -v -c a.conf -p 1884", "a.conf"},
		{"mosquitto --config-file a.conf", "a.conf"},
		{"mosquitto -c a.conf -c b.conf", "a.conf b.conf"},
		{"mosquitto -c -c", "-c"},
		{"mosquitto -c", ""},
		{"mosquitto -p 1884 -c a.conf", "a.conf"},
		{"mosquitto --tls-keylog -c a.conf", ""},
		{"mosquitto --port -c -c a.conf", "a.conf"},
		{"mosquitto -ca.conf --config-file=a.conf", ""}, // the broker knows neither
		{"-c a.conf", ""},
	} {
		if got := configFiles(strings.Fields(test.args)); !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("%q: got %q, want %q", test.args, got, test.want)
		}
	}
}

func TestRunningWithoutConfiguration(t *testing.T) {
	c, err := Running()
	if c != nil || !errors.Is(err, ErrNotFound) || err.Error() != "broker configuration: the command line names no configuration file (-c FILE)" {
		t.Errorf("got %v, %v", c, err)
	}
}

// TestRunning starts this test again, with the command line and the working
// directory of a broker.
func TestRunning(t *testing.T) {
	if os.Getenv("BROKERCONF_RUNNING") != "" {
		c, err := Running()
		if err != nil {
			t.Fatal(err)
		}
		l, found := c.OtherAccessControl(self)
		if !found || l.String() != "two.conf:2: acl_file /x" || !slices.Equal(c.Files, []string{"one.conf", "d/i.conf", "two.conf"}) {
			t.Errorf("got %v, %v, %q", l, found, c.Files)
		}
		return
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable, "-test.run=^TestRunning$", "--", "-v", "-c", "one.conf", "-c", "two.conf")
	cmd.Dir = write(t, map[string]string{"one.conf": "include_dir d\n", "d/i.conf": "persistence true\n", "two.conf": "\nacl_file /x\n"})
	cmd.Env = append(os.Environ(), "BROKERCONF_RUNNING=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSelfPath(t *testing.T) {
	got, err := SelfPath()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if !sameLibrary(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMappedFile(t *testing.T) {
	dir := write(t, map[string]string{"real (deleted)": "", "two\nlines": ""})
	maps := []byte(strings.ReplaceAll(`55e000000000-55e000001000 r--p 00000000 fe:01 42                         /usr/sbin/mosquitto
7f0000000000-7f0000001000 r-xp 00000000 fe:01 43                         DIR/mosquitto bouncer.so
7f0000001000-7f0000002000 r-xp 00001000 fe:01 44                         DIR/gone.so (deleted)
7f0000002000-7f0000003000 r-xp 00001000 fe:01 45                         DIR/real (deleted)
7f0000003000-7f0000004000 r-xp 00001000 fe:01 46                         DIR/two\012lines
7f0000004000-7f0000005000 rw-p 00000000 00:00 0 
7f0000005000-7f0000006000 rw-p 00000000 00:00 0                          [heap]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`, "DIR", dir))
	for _, test := range []struct {
		address   uint64
		want, err string
	}{
		{0x55e000000000, "/usr/sbin/mosquitto", ""},
		{0x7f0000000fff, "DIR/mosquitto bouncer.so", ""},
		{0x7f0000001000, "DIR/gone.so", ""},
		{0x7f0000002000, "DIR/real (deleted)", ""},
		{0x7f0000003000, "DIR/two\nlines", ""},
		{0x7f0000004000, "", "address 0x7f0000004000 is not mapped from a file"},
		{0x7f0000005fff, "", "address 0x7f0000005fff is not mapped from a file"},
		{0xffffffffff600000, "", "address 0xffffffffff600000 is not mapped from a file"},
		{0x55e000001000, "", "address 0x55e000001000 is not mapped"},
	} {
		got, err := mappedFile(maps, test.address)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got != strings.ReplaceAll(test.want, "DIR", dir) || text != test.err {
			t.Errorf("%#x: got %q, %q, want %q, %q", test.address, got, text, test.want, test.err)
		}
	}
}

// TestAgainstBroker holds the tables of this package against an installed
// broker: what is an error here the broker refuses too, what is fine here it
// accepts, if its version does, and it includes files in the same order. A
// plugin that does not exist ends it before it opens a port.
func TestAgainstBroker(t *testing.T) {
	broker, err := exec.LookPath("mosquitto")
	if err != nil {
		broker = "/usr/sbin/mosquitto"
	}
	if _, err := os.Stat(broker); err != nil {
		t.Skip("mosquitto is not installed")
	}
	start := func(t *testing.T, files map[string]string) (log string, refused bool) {
		t.Helper()
		files["mosquitto.conf"] += "\nplugin /nonexistent/plugin.so\n"
		cmd := exec.Command(broker, "-v", "-c", filepath.Join(write(t, files), "mosquitto.conf"))
		out, err := cmd.CombinedOutput()
		log = string(out)
		if err == nil || strings.Contains(log, "running") {
			t.Fatalf("the broker did not fail: %v\n%s", err, log)
		}
		return log, !strings.Contains(log, "Config loaded")
	}
	for _, test := range refused {
		if log, refused := start(t, map[string]string{"mosquitto.conf": test.text}); !refused {
			t.Errorf("%s: the broker accepts it:\n%s", test.name, log)
		}
	}
	for _, name := range []string{"no newline at the end", "CR LF", "blank in front", "blanks around the value", "no comment behind a value", "long line", "comment", "line that begins with CR", "lines of blanks"} {
		i := slices.IndexFunc(others, func(row struct{ name, text, want string }) bool { return row.name == name })
		if log, refused := start(t, map[string]string{"mosquitto.conf": others[i].text}); refused {
			t.Errorf("%s: the broker refuses it:\n%s", name, log)
		}
	}

	files := map[string]string{"mosquitto.conf": "include_dir DIR/d\n", "d/.conf": "refuse me\n", "d/a.conf~": "refuse me\n"}
	for _, name := range strings.Fields("b B a A ab Ab aB a-b a_b a.b 1 01 10 z .h Z _") {
		files["d/"+name+".conf"] = ""
	}
	log, _ := start(t, files)
	var got []string
	for line := range strings.Lines(log) {
		if _, path, found := strings.Cut(line, "Loading config file "); found {
			got = append(got, filepath.Base(strings.Trim(path, "'\n")))
		}
	}
	var want []string
	for _, path := range read(t, files).Files[1:] {
		want = append(want, filepath.Base(path))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the broker includes in the order\n%q, here it is\n%q", got, want)
	}
}
