package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin"
	"mosquitto-bouncer/plugin/version"
)

// program is the real binary, built once.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "bouncerctl-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "bouncerctl")
		if output, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, output)
			return 1
		}
		return m.Run()
	}())
}

func TestVersion(t *testing.T) {
	if version.Number != plugin.Version {
		t.Errorf("bouncerctl is %s, the plugin %s", version.Number, plugin.Version)
	}
	if got := succeed(t, "--version"); got != "bouncerctl "+version.Number+"\n" {
		t.Errorf("got %q", got)
	}
}

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		want string
		args []string
	}{
		{`no command given; see bouncerctl --help`, nil},
		{`unknown command "devcie", did you mean "device"?; see bouncerctl --help`, []string{"devcie"}},
		{`unknown command "frobnicate"; see bouncerctl --help`, []string{"frobnicate"}},
		{`unknown flag: --loud; see bouncerctl --help`, []string{"--loud"}},
		{`no command given; see bouncerctl device --help`, []string{"device"}},
		{`unknown command "ad", did you mean "add"?; see bouncerctl device --help`, []string{"device", "ad"}},
		{`no device id given; see bouncerctl device add --help`, []string{"device", "add"}},
		{`no device id given; see bouncerctl device remove --help`, []string{"device", "remove"}},
		{`unexpected argument "b", one device at a time; see bouncerctl device disable --help`, []string{"device", "disable", "a", "b"}},
		{`unexpected argument "a"; see bouncerctl device list --help`, []string{"device", "list", "a"}},
		{`"a/b" is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -); see bouncerctl device add --help`, []string{"device", "add", "a/b"}},
		{`"" is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -); see bouncerctl device add --help`, []string{"device", "add", ""}},
		{`the device id ".." would name a directory, in the backend's URL too; use another; see bouncerctl device add --help`, []string{"device", "add", ".."}},
		{`--dir is missing; see bouncerctl init --help`, []string{"init"}},
		{`unexpected argument "x"; see bouncerctl init --help`, []string{"init", "--dir", "d", "x"}},
		{`--port 65536 is not 1 to 65535; see bouncerctl init --help`, []string{"init", "--dir", "d", "--port", "65536"}},
		{`invalid argument "x" for "--port" flag: strconv.ParseInt: parsing "x": invalid syntax; see bouncerctl init --help`, []string{"init", "--dir", "d", "--port", "x"}},
		{`--host: "a b" is neither a host name nor an IP address; see bouncerctl init --help`, []string{"init", "--dir", "d", "--host", "a b"}},
		{`--backend "http://\"" is not a URL; see bouncerctl init --help`, []string{"init", "--dir", "d", "--backend", `http://"`}},
	} {
		fail(t, 2, test.want, test.args...)
	}
}

// TestHelp: every command has help with an example, and fits a terminal.
func TestHelp(t *testing.T) {
	for _, command := range []string{"", "init", "device", "device add", "device list", "device remove", "device disable", "device enable",
		"queue", "queue resume", "dead", "dead list", "dead show", "dead requeue", "dead drop",
		"device import", "device show", "device rotate", "device renew", "device pin", "device unpin", "registry", "registry key",
		"registry encrypt", "registry decrypt", "registry backup", "check", "sign", "verify", "top"} {
		help := succeed(t, append(strings.Fields(command), "--help")...)
		example := strings.Join([]string{"Examples:\n  bouncerctl", command}, " ")
		if !strings.Contains(help, strings.TrimSpace(example)) {
			t.Errorf("%q: no example in:\n%s", command, help)
		}
		for line := range strings.Lines(help) {
			if len(line) > 96 {
				t.Errorf("%q: wide line %q", command, line)
			}
		}
	}
}
