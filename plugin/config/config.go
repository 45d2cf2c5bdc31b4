// Package config reads bouncer.toml, strictly: a Config that Load returns is sound.
//
// Load refuses an unknown key, a value out of range, a file that cannot be read. A misspelt setting that did nothing would be
// a gate left open.
//
// settings.go has one row for each setting. The reader, the reload, the example and the documents come from these rows.
// "How to add a setting" is in CONTRIBUTING.md. Struct tags were the other way: but ranges and texts would be strings in
// strings, wrong ones would be found at the start of the broker and not by the compiler, and three files that become one
// tls.Config have no field to tag.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"mosquitto-bouncer/plugin/textfile"
)

// MaxFileBytes is the largest bouncer.toml, and the largest file named in it,
// that is read.
const MaxFileBytes = 1 << 20

// DeviceID is the placeholder for the device id in topics and in the backend's
// URL.
const DeviceID = "{device_id}"

// Config is a bouncer.toml that has been checked: every value is within its
// range, every file it names has been read, every path is absolute. It is not
// changed after Load and so safe for concurrent use.
//
// Each field is the setting of the same name in lower case with underscores;
// paths in the file may be relative to the directory of bouncer.toml.
type Config struct {
	// StateDir is the directory of the journal and of the dead letters.
	StateDir string
	// Database is the SQLite file of the devices.
	Database string

	Publish  Publish
	Backend  Backend
	Fleet    Fleet
	Response Response
	Command  Command
	Rejected Rejected
	ACL      ACL
	Journal  Journal
	HTTP     HTTP
	Registry Registry
	Audit    Audit

	DeadLetters DeadLetters

	file  string
	lines map[string]int // of the keys that are set
	files []File
}

// A File is one that a setting names, and that Load has read.
type File struct {
	Key  string // as in the file, with its section: "http.token_file"
	Path string // absolute
}

// Files returns the files that were read, in no particular order: those of secrets, keys and certificates.
func (c *Config) Files() []File { return c.files }

// Where returns where a setting stands, for an error about its value that only
// its use brings to light: "FILE:LINE: key", or "FILE: key" where the default
// is in force. key is as in the file, with its section: "backend.url".
func (c *Config) Where(key string) string {
	if line, set := c.lines[key]; set {
		return fmt.Sprintf("%s:%d: %s", c.file, line, key)
	}
	return fmt.Sprintf("%s: %s", c.file, key)
}

// Load reads and checks the bouncer.toml at path, and the files it names.
//
// An error says what is wrong and what to do, one problem a line, each
// beginning "FILE:LINE: key: " (an *Error), or "FILE: " where the file itself
// could not be read (wrapping the cause). No secret is ever in it.
func Load(path string) (*Config, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; give an absolute path", path, err)
	}
	source, err := readFile(path, 0)
	if err != nil {
		advice := "the broker's user must be able to read it"
		switch {
		case errors.Is(err, fs.ErrPermission):
			advice = "the broker's user must be able to read it, and so must the user who runs bouncerctl"
		case errors.Is(err, fs.ErrNotExist):
			advice = "name an existing file, or create one with bouncerctl init"
		}
		if textfile.Is(err) {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return nil, fmt.Errorf("%s: cannot be read: %w; %s", path, err, advice)
	}
	return parse(path, filepath.Dir(absolute), source)
}

// parse is Load after the reading. Relative paths in source are relative to
// dir.
func parse(file, dir string, source []byte) (*Config, error) {
	d, err := newDocument(file, dir, source)
	if err != nil {
		return nil, err
	}
	c := new(Config)
	table := c.table()
	for _, s := range table {
		if s.read != nil {
			s.read(d, s.Key)
		}
	}
	d.rules(c)
	d.refuseUnknown(table)
	if err := d.err(); err != nil {
		return nil, err
	}
	c.file, c.lines, c.files = file, make(map[string]int), d.files
	for _, e := range d.entries {
		if _, set := d.lookup(e.key); set {
			c.lines[e.key] = e.line
		}
	}
	return c, nil
}
