package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const pluginFile = "mosquitto_bouncer.so"

// findPlugin returns the absolute path of the plugin: the one named, or the one
// that is installed with this program.
func findPlugin(named string) (string, error) {
	if named != "" {
		path, err := filepath.Abs(named)
		if err != nil {
			return "", err
		}
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			return "", fmt.Errorf("there is no plugin file %s; name an existing one with --plugin", path)
		}
		return path, nil
	}
	var places []string
	if program, err := os.Executable(); err == nil {
		if resolved, err := filepath.EvalSymlinks(program); err == nil {
			program = resolved
		}
		bin := filepath.Dir(program)
		places = append(places, filepath.Join(bin, pluginFile), filepath.Join(bin, "..", "lib", pluginFile))
	}
	if triplet := debianTriplets[runtime.GOARCH]; triplet != "" {
		places = append(places, filepath.Join("/usr/lib", triplet, pluginFile))
	}
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not in %s; name it with --plugin", pluginFile, strings.Join(places, ", "))
}

// debianTriplets are where Debian keeps libraries, by Go's architecture.
var debianTriplets = map[string]string{
	"386":     "i386-linux-gnu",
	"amd64":   "x86_64-linux-gnu",
	"arm":     "arm-linux-gnueabihf",
	"arm64":   "aarch64-linux-gnu",
	"ppc64le": "powerpc64le-linux-gnu",
	"riscv64": "riscv64-linux-gnu",
	"s390x":   "s390x-linux-gnu",
}

// installedPlugin is where the plugin is, or where make install puts it.
func installedPlugin() string {
	path, err := findPlugin("")
	if err != nil {
		return "/usr/local/lib/" + pluginFile
	}
	return path
}
