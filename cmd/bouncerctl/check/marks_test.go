package check

import (
	"path/filepath"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/brokerconf"
)

// TestCheckMarks finds byte order marks in what Mosquitto reads itself.
func TestCheckMarks(t *testing.T) {
	dir := t.TempDir()
	conf, acl := filepath.Join(dir, "mosquitto.conf"), filepath.Join(dir, "acl")
	writeFile(t, acl, "\ufefftopic read #\n")
	writeFile(t, conf, "\ufeff# first\nlistener 1883\n")
	var marked checker
	if marked.checkMarks(conf); len(marked.findings) != 1 || marked.findings[0].Where != conf {
		t.Error(marked.findings)
	}
	writeFile(t, conf, "# first\nlistener 1883\nacl_file "+acl+"\n")
	var k checker
	var err error
	if k.conf, err = brokerconf.ReadFile(conf); err != nil {
		t.Fatal(err)
	}
	k.checkMarks(conf)
	if len(k.findings) != 1 || !k.findings[0].Error || !strings.Contains(k.findings[0].Text, "begins with a byte order mark") ||
		k.findings[0].Where != conf+":3" {
		t.Error(k.findings)
	}
}
