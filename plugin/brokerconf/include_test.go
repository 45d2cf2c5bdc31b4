package brokerconf

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

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
