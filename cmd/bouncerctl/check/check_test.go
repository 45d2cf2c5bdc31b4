package check

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFindingsSayWhereAndWhatToDo checks a configuration in which much is wrong.
func TestFindingsSayWhereAndWhatToDo(t *testing.T) {
	dir := t.TempDir()
	toml, conf := filepath.Join(dir, "bouncer.toml"), filepath.Join(dir, "mosquitto.conf")
	writeFile(t, toml, "database = \"none.db\"\nstate_dir = \"none\"\n")
	writeFile(t, conf, "listener 8883\nallow_anonymous true\ncertfile none.crt\nplugin mosquitto_bouncer.so\nplugin_opt_config_file "+toml+"\nplugin_opt_other x\n")
	r := Run("", conf, Options{Now: time.Now(), Plugin: "/usr/lib/p.so", Config: "/etc/bouncer.toml"})
	if len(r.Findings) < 8 || r.Errors() < 5 || len(r.Files) != 2 {
		t.Errorf("%d findings, %d errors, files %q", len(r.Findings), r.Errors(), r.Files)
	}
	for _, f := range r.Findings {
		if !strings.HasPrefix(f.Where, dir) || !strings.ContainsAny(f.Text, ";:") {
			t.Errorf("%+v", f)
		}
	}
}
