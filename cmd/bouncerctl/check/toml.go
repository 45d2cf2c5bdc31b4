package check

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"mosquitto-bouncer/plugin/config"
)

// checkTOML takes over what the plugin itself would refuse.
func (k *checker) checkTOML(path string) {
	k.files = append(k.files, path)
	c, err := config.Load(path)
	if problems, ok := errors.AsType[*config.Error](err); ok {
		for _, p := range problems.Problems {
			text := p.Text
			if p.Key != "" {
				text = p.Key + ": " + text
			}
			k.error(fmt.Sprintf("%s:%d", p.File, p.Line), "%s", text)
		}
		return
	}
	if err != nil {
		k.error(path, "%s", strings.TrimPrefix(err.Error(), path+": "))
		return
	}
	k.toml = c
	k.readable(path, path)
	for _, f := range c.Files() {
		k.readable(k.set(f.Key), f.Path)
	}
	k.writable(k.set("state_dir"), c.StateDir)
	if c.Audit.File != "" {
		k.writable(k.set("audit.file"), filepath.Dir(c.Audit.File))
	}
	k.checkRegistry()
	k.checkHTTP()
	k.checkFleet()
	k.checkLetters()
}

// set returns where a setting of bouncer.toml stands.
func (k *checker) set(key string) string { return strings.TrimSuffix(k.toml.Where(key), ": "+key) }

// checkFleet finds what a fleet is not safe with.
func (k *checker) checkFleet() {
	if f := k.toml.Fleet; len(f.Servers) > 0 && f.Replicas < 3 {
		k.warn(k.set("fleet.replicas"), "fleet.replicas: with %d, messages are lost or held up with one NATS server; use 3", f.Replicas)
	}
}

// checkHTTP finds what a later version will refuse of the HTTP listener's settings.
func (k *checker) checkHTTP() {
	if why := k.toml.HTTP.TokenWarning(); why != "" {
		k.warn(k.set("http.token_file"), "http.token_file: %s", why)
	}
}
