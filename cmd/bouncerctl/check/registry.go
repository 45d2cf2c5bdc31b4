package check

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/plugin/registry"
)

// checkWAL finds a database in WAL mode, which the broker's user can read only if it can write its directory. It reports
// whether the database is not worth a closer look therefore.
func (k *checker) checkWAL(where, path string) (found bool) {
	if !registry.WriteAheadLogged(path) {
		return false
	}
	dir := filepath.Dir(path)
	writable := unix.Access(dir, unix.W_OK|unix.X_OK) == nil
	if info, err := os.Stat(dir); err == nil && k.Broker != nil {
		writable = k.Broker.May(info, 0o3)
	}
	if !writable {
		k.error(where, "%s is in WAL mode, and the user %s cannot write its directory, which reading it then needs; %s",
			path, files.BrokerUser, registry.WALCure(path))
		return true
	}
	k.warn(where, "%s is in WAL mode: its -wal and -shm files belong to the user who opens it first, and the broker's user must be able to write them; %s",
		path, registry.WALCure(path))
	return false
}

// checkRegistry finds a database that the plugin cannot take the devices from.
func (k *checker) checkRegistry() {
	where := k.set("database")
	if _, err := os.Stat(k.toml.Database); errors.Is(err, fs.ErrNotExist) {
		k.error(where, "%s does not exist; bouncerctl device add makes it, or correct the path", k.toml.Database)
		return
	}
	before := len(k.findings)
	if k.readable(where, k.toml.Database); len(k.findings) > before {
		return
	}
	if k.checkWAL(where, k.toml.Database) {
		return
	}
	var key *registry.Key
	var err error
	if k.toml.Registry.Key != nil {
		key, err = registry.NewKey(k.toml.Registry.Key)
	}
	if err == nil {
		err = registry.Check(context.Background(), k.toml.Database, registry.WithKey(key))
	}
	if err != nil {
		k.error(where, "%s", strings.TrimPrefix(err.Error(), "device database: "))
	}
}
