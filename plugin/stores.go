package plugin

import (
	"context"
	"os"
	"path/filepath"
)

// watchStores has every store looked at, again and again, whether it can be written: /healthz says so. The journal looks
// by itself, and refuses what it could not keep.
func (g *Gateway) watchStores() {
	g.writable.Add("dead.db", g.store.letters.Writable)
	g.writable.Add("suspended", func(context.Context) error { return g.suspensions.Writable() })
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

// probeDirectory finds out whether a file in the directory could be replaced now.
func probeDirectory(dir string) error {
	name := filepath.Join(dir, ".probe")
	if err := os.WriteFile(name, []byte("\n"), 0o640); err != nil {
		return err
	}
	return os.Remove(name)
}
