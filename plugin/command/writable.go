package command

import (
	"context"
	"fmt"
	"io/fs"
	"os"
)

// Writable has the goroutine write what changes nothing, and so finds out whether a command could be stored now.
func (s *Store) Writable(ctx context.Context) error {
	probe := make(chan error, 1)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.probes = append(s.probes, probe)
	s.mu.Unlock()
	s.poke()
	select {
	case err := <-probe:
		return err
	case <-ctx.Done():
		return fmt.Errorf("commands: %s: no answer: %w", s.path, ctx.Err())
	}
}

// inPlace reports whether the database is still what its path names: one that was removed could be written, and would be
// gone at the next start.
func (s *Store) inPlace() error {
	info, err := os.Stat(s.path)
	if err == nil && !os.SameFile(info, s.file) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("the database was removed, renamed or replaced (%w); put it back, or restart the broker, which continues with what is there", err)
	}
	return nil
}
