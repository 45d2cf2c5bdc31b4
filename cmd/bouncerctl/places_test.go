package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// asRoot skips a test that gives files to others.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to other users")
	}
}

const somebody = 12345 // a user id that no user has

// places are directories in which another user could replace what root makes, by what is wrong with them.
func places(t *testing.T) map[string]string {
	t.Helper()
	base := t.TempDir()
	directory := func(name string, mode os.FileMode, uid, gid int) string {
		path := filepath.Join(base, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := func(to, name string, uid int) string {
		path := filepath.Join(base, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
		return path
	}
	own := directory("own", 0o755, 0, 0)
	theirs := directory("theirs", 0o755, somebody, somebody)
	directory("theirs/below", 0o755, 0, 0)
	sticky := directory("sticky", os.ModeSticky|0o777, somebody, 0)
	open := directory("open", 0o777, 0, 0)
	group := directory("group", 0o775, 0, somebody)
	return map[string]string{
		theirs:                             "run: chown root " + theirs,
		filepath.Join(theirs, "below"):     "run: chown root " + theirs,
		filepath.Join(theirs, "new/newer"): "run: chown root " + theirs,
		sticky:                             "run: chown root " + sticky,
		open:                               "run: chmod o-w " + open,
		group:                              "run: chmod g-w " + group,
		link(own, "planted", somebody):     "the symbolic link " + filepath.Join(base, "planted") + " belongs to the user id 12345",
		link("theirs/below", "mine", 0):    "run: chown root " + theirs,
		link("own/../theirs", "round", 0):  "run: chown root " + theirs,
		link("circle", "circle", 0):        "too many levels of symbolic links",
	}
}

// TestPlacesOfOthers: root makes no CA, no bundle, no key and no backup where another user could replace it, and leaves
// nothing behind. What is wrong is named, with its cure.
func TestPlacesOfOthers(t *testing.T) {
	asRoot(t)
	dir := newDir(t)
	plugin := filepath.Join(t.TempDir(), "mosquitto_bouncer.so")
	writeFile(t, plugin, "")
	config := filepath.Join(dir, bouncerTOML)
	device(t, dir, "add", "sensor_001")
	csv := filepath.Join(t.TempDir(), "devices.csv")
	writeFile(t, csv, "id,secret\nsensor_002,s\n")
	for place, cure := range places(t) {
		for name, args := range map[string][]string{
			"init":       {"init", "--dir", place, "--plugin", plugin},
			"init below": {"init", "--dir", filepath.Join(place, "site"), "--plugin", plugin},
			"add":        {"device", "add", "sensor_003", "--config", config, "--out", filepath.Join(place, "bundle")},
			"rotate":     {"device", "rotate", "sensor_001", "--config", config, "--out", filepath.Join(place, "bundle")},
			"renew":      {"device", "renew", "sensor_001", "--config", config, "--out", filepath.Join(place, "bundle")},
			"import":     {"device", "import", csv, "--config", config, "--out", filepath.Join(place, "bundles")},
			"make":       {"command-key", "make", filepath.Join(place, "key"), "--config", config},
			"key":        {"registry", "key", filepath.Join(place, "key"), "--config", config},
			"backup":     {"registry", "backup", filepath.Join(place, "backup"), "--config", config},
		} {
			if name != "init" && !strings.Contains(cure, "theirs") && !strings.Contains(cure, "chmod g-w") {
				continue // the way to look at a place is the same
			}
			got := bouncerctl(t, "", args...)
			if got.code != 1 || !strings.Contains(got.stderr, cure) {
				t.Errorf("%s in %s: exit code %d, %q, want %q", name, place, got.code, got.stderr, cure)
			}
			for _, made := range []string{"site", "bundle", "bundles", "key", "backup", "pki", bouncerTOML} {
				if _, err := os.Lstat(filepath.Join(place, made)); err == nil {
					t.Errorf("%s in %s has made %s", name, place, made)
				}
			}
		}
	}
	if got := succeed(t, "device", "list", "--config", config); strings.Contains(got, "sensor_002") || strings.Contains(got, "sensor_003") {
		t.Errorf("a device whose bundle was refused is registered:\n%s", got)
	}
}
