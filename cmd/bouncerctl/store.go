package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
)

// withStore runs do on the registry that the configuration names, which must
// exist.
func withStore(configFile string, do func(*registry.Store) error) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	store, err := openStore(cfg, false)
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

// openStore opens the registry. If there is none, it is an error unless create.
func openStore(cfg *config.Config, create bool) (*registry.Store, error) {
	path := cfg.Database
	key, err := registryKey(cfg)
	if err != nil {
		return nil, err
	}
	_, err = os.Stat(path)
	if err == nil {
		return registry.OpenStore(path, registry.WithKey(key))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !create {
		return nil, fmt.Errorf("there is no device database %s; register a device with bouncerctl device add, or correct database in bouncer.toml", path)
	}
	owner, err := files.BrokerAccount()
	if err != nil {
		return nil, err
	}
	var c files.Creation
	if err := c.File(path, nil, 0o640, owner); err != nil {
		return nil, fmt.Errorf("making the device database: %w; make its directory, or correct database in bouncer.toml", err)
	}
	return registry.OpenStore(path, registry.WithKey(key))
}

// registryKey is what the secrets are encrypted under; nil if they are not.
func registryKey(cfg *config.Config) (*registry.Key, error) {
	if cfg.Registry.Key == nil {
		return nil, nil
	}
	return registry.NewKey(cfg.Registry.Key)
}

// deviceError says what to do about the errors of the registry that one can do
// something about.
func deviceError(id string, err error) error {
	switch {
	case errors.Is(err, registry.ErrExists):
		return fmt.Errorf("device %q is already registered; remove it first, or use another id", id)
	case errors.Is(err, registry.ErrNotFound):
		return fmt.Errorf("device %q is not registered; see bouncerctl device list", id)
	case errors.Is(err, registry.ErrPublicKey):
		return fmt.Errorf("device %q signs with a public key and has no secret; see bouncerctl device show", id)
	case errors.Is(err, registry.ErrNoPublicKey):
		return fmt.Errorf("device %q has a secret and no public key; to give it one, remove it and register it again", id)
	case errors.Is(err, registry.ErrSameKey):
		return fmt.Errorf("device %q has this public key already; make a new one", id)
	case errors.Is(err, registry.ErrTooManyKeys):
		return fmt.Errorf("%w; wait until one ends (bouncerctl device show), or end all of them: bouncerctl device rotate %s --key FILE --now, with its present public key or a new one", err, id)
	case errors.Is(err, registry.ErrTooManySecrets):
		return fmt.Errorf("%w; wait until one ends (bouncerctl device show), or end all of them with --grace 0", err)
	}
	return err
}

// outExists is the error where a bundle would replace something.
func outExists(dir string) error {
	return fmt.Errorf("%s already exists; move it away, or name another directory with --out", dir)
}

// notPermitted says what to do where the state directory is closed to us.
func notPermitted(err error) error {
	return fmt.Errorf("%w; run bouncerctl as root, or as the broker's user", err)
}
