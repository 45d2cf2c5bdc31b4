package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/config"
)

// TestExamples: the example files of the distribution are what init writes, for
// the paths of a package.
func TestExamples(t *testing.T) {
	conf, err := render("mosquitto.conf.tmpl", mosquittoValues{
		Self:        "mosquitto.conf",
		Port:        8883,
		PKI:         "/etc/mosquitto-bouncer/pki",
		Plugin:      "/usr/local/lib/mosquitto_bouncer.so",
		Config:      "/etc/mosquitto-bouncer/bouncer.toml",
		Persistence: "/var/lib/mosquitto/",
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string][]byte{
		"../../mosquitto.conf.example": conf,
		"../../bouncer.toml.example":   []byte(config.Example("", nil)),
	} {
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what init writes; run make docs", file)
		}
	}
}

// TestExampleSettings: the settings that the example shows are the defaults.
func TestExampleSettings(t *testing.T) {
	settings := func(file string) []any {
		c, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		return []any{c.StateDir, c.Database, c.Publish, c.Backend, c.Response, c.Command, c.Rejected, c.ACL, c.Journal, c.DeadLetters, c.HTTP, c.Registry, c.Audit}
	}
	empty := filepath.Join(t.TempDir(), "empty.toml")
	writeFile(t, empty, "")
	got, want := settings("../../bouncer.toml.example"), settings(empty)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// TestConfLines: a blank at the end of an option belongs to its value, a tab
// does not end its name, and no option may be given twice.
func TestConfLines(t *testing.T) {
	content, err := os.ReadFile("../../mosquitto.conf.example")
	if err != nil {
		t.Fatal(err)
	}
	options := map[string]string{}
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		name, value, _ := strings.Cut(line, " ")
		if value == "" || value != strings.TrimSpace(value) || strings.ContainsAny(line, "\t\"#") {
			t.Errorf("line %q", line)
		}
		if _, twice := options[name]; twice && name != "log_type" {
			t.Errorf("option %s is given twice", name)
		}
		options[name] = value
	}
	for name, want := range map[string]string{
		"per_listener_settings":    "false",
		"allow_anonymous":          "false",
		"set_tcp_nodelay":          "true",
		"listener":                 "8883",
		"tls_version":              "tlsv1.2",
		"require_certificate":      "true",
		"use_identity_as_username": "true",
		"plugin":                   "/usr/local/lib/mosquitto_bouncer.so",
		"plugin_opt_config_file":   "/etc/mosquitto-bouncer/bouncer.toml",
	} {
		if options[name] != want {
			t.Errorf("%s is %q, want %q", name, options[name], want)
		}
	}
}
