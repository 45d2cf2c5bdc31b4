package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/registry"
)

// elsewhere is the flag that a further command needs for this bouncer.toml.
func elsewhere(configFile string) string {
	if configFile == defaultConfig {
		return ""
	}
	return " --config " + output.Shell(configFile)
}

func newRegistryKey(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "key FILE",
		Short: "Make a key for the secrets in the database",
		Long: `Make a file with a new key, 64 random hexadecimal digits, for [registry]
key_file in bouncer.toml. Without the key, the secrets that are encrypted under it
are lost: keep a copy, but not together with the backups of the database.

The file gets mode 0640 and, run as root, the group mosquitto.`,
		Example: `  bouncerctl registry key /etc/mosquitto-bouncer/registry.key`,
		Args:    oneFile,
		RunE: func(c *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			owner, err := files.BrokerAccount()
			if err != nil {
				return err
			}
			if owner != nil {
				owner = &files.Account{GID: owner.GID}
			}
			var made files.Creation
			if err := made.File(path, append(registry.GenerateKey(), '\n'), 0o640, owner); err != nil {
				if errors.Is(err, fs.ErrExist) {
					err = fmt.Errorf("%s already exists; a key is never overwritten, name another file", path)
				}
				return errors.Join(err, made.Undo())
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), `Made the key %s.

Next:
  1. Name it in %s:
     [registry]
     key_file = %q
  2. Send SIGHUP to the broker, which then reads it. Then encrypt:
     bouncerctl registry encrypt%s
`, path, *configFile, path, elsewhere(*configFile))
			return err
		},
	}
}
