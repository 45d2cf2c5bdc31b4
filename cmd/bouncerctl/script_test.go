package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/plugin/pki"
)

// TestScripts runs testdata/*.txtar: commands, and what they say.
func TestScripts(t *testing.T) {
	root, err := os.MkdirTemp("", "bouncerctl-script-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })  // the scripts run in parallel, after this function
	if err := os.Chmod(root, 0o755); err != nil { // for the broker's user
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:         "testdata",
		WorkdirRoot: root,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(program)+":"+os.Getenv("PATH"))
			env.Setenv("CONF", filepath.Join(env.WorkDir, "site", "bouncer.toml"))
			return errors.Join(os.Chmod(env.WorkDir, 0o755),
				os.WriteFile(filepath.Join(env.WorkDir, "mosquitto_bouncer.so"), nil, 0o644))
		},
		Condition: func(name string) (bool, error) {
			if name != "root" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			broker, err := files.BrokerAccount()
			return broker != nil, err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// expired FILE makes a certificate that expired a day ago.
			"expired": func(ts *testscript.TestScript, _ bool, args []string) {
				then := time.Now().Add(-48 * time.Hour)
				ca, err := pki.NewCA("CA", then, pki.CALifetime)
				ts.Check(err)
				cert, _, err := ca.IssueServer([]string{"old.example"}, then, 24*time.Hour)
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), cert, 0o644))
			},
		},
		UpdateScripts: *update,
	})
}
