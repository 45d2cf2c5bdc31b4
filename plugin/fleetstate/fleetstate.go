// Package fleetstate is the file in which a gateway says why nothing goes to NATS, for operators' programs. There is no such
// file while messages go out.
package fleetstate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"mosquitto-bouncer/plugin/textfile"
)

// FileName is the file's name in the state directory.
const FileName = "fleet.state"

const (
	maxFile = 64 << 10
	// maxWhy bounds the reason that is kept, in bytes: NATS has a part in its words.
	maxWhy = 1 << 10
)

// State is why nothing goes out, and since when.
type State struct {
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
}

// Load reads the state in dir; nil if messages go out, as far as is known.
func Load(dir string) (*State, error) {
	path := filepath.Join(dir, FileName)
	text, err := textfile.ReadRegular(path, maxFile, 0, func(fs.FileInfo) error { return nil })
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := new(State)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Save replaces the state in dir; nil removes it. A crash leaves the old state or the new one.
func Save(dir string, s *State) error {
	path := filepath.Join(dir, FileName)
	if s == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	cut := *s
	cut.Why = cut.Why[:min(len(cut.Why), maxWhy)]
	text, err := json.Marshal(cut)
	if err != nil {
		return err
	}
	next := path + ".new"
	if err := os.WriteFile(next, append(text, '\n'), 0o640); err != nil {
		return err
	}
	return os.Rename(next, path)
}
