package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"mosquitto-bouncer/cmd/bouncerctl/bundle"
	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/plugin/config"
)

// interruptible returns a context that ends with Ctrl-C and SIGTERM, so that nothing is left half-made by them.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}

// bundleDir returns the absolute path of the directory out; "": of the directory name in devices, next to the database.
func bundleDir(cfg *config.Config, out, name string) (string, error) {
	if out == "" {
		out = filepath.Join(filepath.Dir(cfg.Database), "devices", name)
	}
	return filepath.Abs(out)
}

// writeBundle makes the directory out for a device, and then changes the registry; both or neither.
func writeBundle(id string, b bundle.Bundle, out string, change func() error) error {
	var c files.Creation
	if err := b.Write(&c, out); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = outExists(out)
		}
		return errors.Join(err, c.Undo())
	}
	if err := change(); err != nil {
		return errors.Join(deviceError(id, err), c.Undo())
	}
	return nil
}
