package suspension

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Writable finds out whether a suspension could be noted now.
func (s *Set) Writable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Mkdir(s.dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	name := filepath.Join(s.dir, ".probe")
	if err := os.WriteFile(name, []byte("\n"), 0o640); err != nil {
		return err
	}
	return os.Remove(name)
}
