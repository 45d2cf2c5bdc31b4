// Package standing keeps over restarts, in one file, what is known about the backend's refusals: so that a backend that
// refuses every message is not found out again after each, at the cost of messages.
package standing

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// FileName is the file's name in the state directory.
const FileName = "backend.state"

// maxFile is the size of the largest file that is read.
const maxFile = 64 << 10

// State is what is kept.
type State struct {
	Refusing bool                 `json:"refusing"`
	Status   int                  `json:"status,omitempty"`
	Since    time.Time            `json:"since"`
	Heard    map[string]time.Time `json:"heard,omitempty"`
	Refused  []string             `json:"refused,omitempty"`
}

// A file is a State and whose it is.
type file struct {
	// URL is the SHA-256 of the URL in the configuration, which may hold a token.
	URL string `json:"url_sha256"`
	State
}

func digest(url string) string {
	sum := sha256.Sum256([]byte(url))
	return hex.EncodeToString(sum[:])
}

// Load reads what was kept in dir about a URL. There may be nothing, which is the zero State, as is what was kept about
// another URL.
func Load(dir, url string) (State, error) {
	path := filepath.Join(dir, FileName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return State{}, err
	}
	var kept file
	if len(text) > maxFile {
		return State{}, fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	if err := json.Unmarshal(text, &kept); err != nil {
		return State{}, fmt.Errorf("%s: %w", path, err)
	}
	if kept.URL != digest(url) {
		return State{}, nil
	}
	return kept.State, nil
}

// Save replaces what is kept in dir. A crash leaves the old file or the new one; a power failure may lose either,
// which costs that the backend is asked again.
func Save(dir, url string, s State) error {
	text, err := json.Marshal(file{digest(url), s})
	if err != nil {
		return err
	}
	path := filepath.Join(dir, FileName)
	next := path + ".new"
	if err := os.WriteFile(next, append(text, '\n'), 0o640); err != nil {
		return err
	}
	return os.Rename(next, path)
}
