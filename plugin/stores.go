package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/outbox"
	"mosquitto-bouncer/plugin/retained"
	"mosquitto-bouncer/plugin/writable"
)

// openRemoved reads which devices were removed.
func (s *starter) openRemoved() (err error) {
	c := s.config
	if s.removed, err = former.Open(filepath.Join(c.StateDir, former.FileName), s.registry, s.log); err != nil {
		return stateError(c, err)
	}
	s.changes.removed.Store(s.removed)
	s.removed.CatchUp(s.registry)
	s.checks = append(s.checks, s.removed.Err)
	return nil
}

// openRetained reads which retained messages were verified before.
func (s *starter) openRetained() (err error) {
	ofDevice := func(topic []byte) bool {
		level, gated := s.topics.Gated(topic)
		return gated && s.registry.Lookup(level) != nil
	}
	if s.verified, err = retained.Open(filepath.Join(s.config.StateDir, retained.FileName), ofDevice, s.log); err != nil {
		return stateError(s.config, err)
	}
	s.clearer = downlink.NewClearer(s.down, maxClears, func(topic string) { s.verified.Forget([]byte(topic)) })
	return nil
}

// watchStores starts to check regularly whether every store can be written, for /healthz. The journal checks itself, and
// refuses what it cannot keep.
func watchStores(checks *writable.Checks, stateDir string, box *outbox.Outbox, commands *downlink.Commands, log *audit.Log) {
	box.WatchWritable(checks)
	if commands != nil {
		checks.Add("commands.db", commands.Writable)
	}
	if log != nil {
		checks.Add("the audit log", func(context.Context) error { return log.Writable() })
	}
	// Removed devices, the backend's standing and verified retained messages are files in state_dir.
	checks.Add("state_dir", func(context.Context) error { return probeDirectory(stateDir) })
	checks.Start()
}

// stateError says in which setting the directory of err is, and what to do.
func stateError(c *config.Config, err error) error {
	switch {
	case errors.Is(err, journal.ErrLocked):
		err = fmt.Errorf("%w: another broker runs with the same state_dir; stop it, or give each its own", err)
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w; create the directory, and let it belong to the broker's user", err)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w; let the directory, and what is in it, belong to the broker's user", err)
	}
	return fmt.Errorf("%s: %w", c.Where("state_dir"), err)
}

// probeDirectory finds out whether a file in the directory could be replaced now.
func probeDirectory(dir string) error {
	name := filepath.Join(dir, ".probe")
	if err := os.WriteFile(name, []byte("\n"), 0o640); err != nil {
		return err
	}
	return os.Remove(name)
}

// unsentFile is where the journal keeps what the broker had not published when it stopped. It is gate.UnsentFile.
type unsentFile struct {
	dir     string // of the journal
	journal *journal.Journal
}

const unsentName = "unsent"

func (s unsentFile) Load() ([]byte, error) { return journal.LoadState(s.dir, unsentName) }

func (s unsentFile) Save(data []byte) error { return s.journal.SaveState(unsentName, data) }
