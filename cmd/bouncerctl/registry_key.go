package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/registry"
)

// elsewhere is the flag that a further command needs for this bouncer.toml.
func elsewhere(configFile string) string {
	if configFile == defaultConfig {
		return ""
	}
	return " --config " + shellQuote(configFile)
}

func newRegistryKey(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "key FILE",
		Short: "Make a key for the secrets in the database",
		Long: `Make a file with a new key, 64 random hexadecimal digits, for [registry]
key_file in bouncer.toml. Without the key, no secret that is encrypted under it
can be had again: keep a copy, and not beside the backups of the database.

The file gets mode 0640 and, run as root, the group mosquitto.`,
		Example: `  bouncerctl registry key /etc/mosquitto-bouncer/registry.key`,
		Args:    oneFile,
		RunE: func(c *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			owner, err := brokerAccount()
			if err != nil {
				return err
			}
			if owner != nil {
				owner = &account{gid: owner.gid}
			}
			var made creation
			if err := made.file(path, append(registry.GenerateKey(), '\n'), 0o640, owner); err != nil {
				if errors.Is(err, fs.ErrExist) {
					err = fmt.Errorf("%s already exists; a key is never overwritten, name another file", path)
				}
				return errors.Join(err, made.undo())
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), `Made the key %s.

Next:
  1. Name it in %s:
     [registry]
     key_file = %q
  2. Have the broker read it (SIGHUP), then encrypt:
     bouncerctl registry encrypt%s
`, path, *configFile, path, elsewhere(*configFile))
			return err
		},
	}
}
