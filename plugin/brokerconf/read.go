package brokerconf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"mosquitto-bouncer/plugin/textfile"
)

// Limits of a configuration; beyond them reading it is an error.
const (
	maxFileBytes = 1 << 20
	maxFiles     = 64
)

// readFiles reads the configuration files one after the other into one
// configuration, as the broker does when it is given several.
func readFiles(paths []string) (*Config, error) {
	c := new(Config)
	for _, path := range paths {
		if err := c.readFile(path, false); err != nil {
			return nil, fmt.Errorf("broker configuration: %w", err)
		}
	}
	return c, nil
}

func (c *Config) readFile(path string, included bool) error {
	if len(c.Files) == maxFiles {
		return fmt.Errorf("%s: more than %d files are not read", path, maxFiles)
	}
	text, err := readText(path)
	if err != nil {
		return err
	}
	c.Files = append(c.Files, path)
	return c.parse(path, text, included)
}

func readText(path string) ([]byte, error) {
	text, err := textfile.ReadRegular(path, maxFileBytes, 0, nil)
	if errors.Is(err, textfile.ErrNotRegular) {
		return nil, fmt.Errorf("%s: %w, it cannot be read a second time", path, err)
	}
	if _, tooLarge := errors.AsType[textfile.TooLargeError](err); tooLarge {
		return nil, fmt.Errorf("%s: longer than %d bytes, not read", path, maxFileBytes)
	}
	return text, err
}

// readDir reads the files of a directory that end in .conf, hidden ones too, in
// the broker's order.
func (c *Config) readDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if name := e.Name(); len(name) > len(".conf") && strings.HasSuffix(name, ".conf") {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, compareNames)
	for _, name := range names {
		// Not filepath.Join: without its ".." a path may lead elsewhere.
		if err := c.readFile(dir+"/"+name, true); err != nil {
			return err
		}
	}
	return nil
}

// compareNames is the order in which the broker reads the files of a directory:
// byte by byte without regard to letter case, an upper-case letter before the
// same letter in lower case.
func compareNames(a, b string) int {
	for i := range min(len(a), len(b)) {
		if d := int(upper(a[i])) - int(upper(b[i])); d != 0 {
			return d
		}
		if d := int(a[i]) - int(b[i]); d != 0 {
			return d
		}
	}
	return len(a) - len(b)
}

func upper(b byte) byte {
	if 'a' <= b && b <= 'z' {
		b -= 'a' - 'A'
	}
	return b
}
