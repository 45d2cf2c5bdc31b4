package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/journal"
)

// watchStores has every store looked at, again and again, whether it can be written: /healthz says so. The journal looks
// by itself, and refuses what it could not keep.
func (g *Gateway) watchStores() {
	g.outbox.WatchWritable(g.writable)
	if g.commands != nil {
		g.writable.Add("commands.db", g.commands.Writable)
	}
	if g.audit != nil {
		g.writable.Add("the audit log", func(context.Context) error { return g.audit.Writable() })
	}
	// Removed devices, the backend's standing and verified retained messages are files of it.
	dir := g.config.StateDir
	g.writable.Add("state_dir", func(context.Context) error { return probeDirectory(dir) })
	g.writable.Start()
}

// stateError says where the directory that err is about was set, and what to do.
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
