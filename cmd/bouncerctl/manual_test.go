package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
)

const referenceHead = `<!-- Made from the commands' own help by: make docs -->
`

// TestReference: docs/bouncerctl.md says what the program's help says.
func TestReference(t *testing.T) {
	file := "../../docs/bouncerctl.md"
	want := referenceHead + reference(newRoot())
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := readFile(t, file); got != want {
		t.Errorf("%s is not what the commands say; run make docs", file)
	}
}

// TestManual: the pages have their sections, and man finds nothing to complain of.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	succeed(t, "manual", "--docs", "../../docs", dir)
	for name, want := range map[string][]string{
		"bouncerctl.1":        {"bouncerctl device rotate", "--grace", ".SH NAME"},
		"bouncer.toml.5":      {"tolerance", "key_file", "SEE ALSO"},
		"mosquitto_bouncer.8": {"plugin_opt_config_file", "SIGHUP", "SEE ALSO"},
	} {
		page := strings.ReplaceAll(readFile(t, filepath.Join(dir, name)), `\-`, "-")
		if name == "bouncer.toml.5" {
			for _, s := range config.Settings() {
				want = append(want, s.Key[strings.IndexByte(s.Key, '.')+1:]+"\\fR: ")
			}
		}
		for _, text := range want {
			if !strings.Contains(page, text) {
				t.Errorf("%s: no %q", name, text)
			}
		}
		if strings.Contains(page, "\n.TS") {
			t.Errorf("%s: a table, which a narrow terminal does not wrap", name)
		}
		if mandoc, err := exec.LookPath("mandoc"); err == nil {
			if output, err := exec.Command(mandoc, "-T", "lint", "-W", "error", filepath.Join(dir, name)).CombinedOutput(); err != nil {
				t.Errorf("%s: %s", name, output)
			}
		}
	}
}

// TestCompletion: the shells' scripts are there, and where bash is, it takes its own.
func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := succeed(t, "completion", shell)
		if !strings.Contains(script, "bouncerctl") {
			t.Errorf("%s: %s", shell, script)
		}
		if path, err := exec.LookPath(shell); err == nil {
			check := exec.Command(path, "-n")
			check.Stdin = strings.NewReader(script)
			if output, err := check.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", shell, err, output)
			}
		}
	}
	dir := newDir(t)
	device(t, dir, "add", "sensor_001")
	device(t, dir, "add", "other")
	got := bouncerctl(t, "", "__complete", "device", "show", "--config", filepath.Join(dir, "bouncer.toml"), "sen")
	if !strings.HasPrefix(got.stdout, "sensor_001\n:") {
		t.Errorf("%q", got.stdout)
	}
}

// TestHelpWidth: what --help says of the flags fits a terminal.
func TestHelpWidth(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for line := range strings.Lines(c.UsageString()[strings.Index(c.UsageString(), "Flags:"):]) {
			if len(strings.TrimRight(line, "\n")) > 80 && !strings.HasPrefix(line, "Use ") {
				t.Errorf("%s: %q", c.CommandPath(), line)
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRoot())
}
