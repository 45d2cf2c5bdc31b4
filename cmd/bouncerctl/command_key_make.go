package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/files"
)

func newCommandKeyMake(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "make FILE",
		Short: "Make the gateway's keys for commands",
		Long: `Make a file with a new key of each algorithm, for [command] keys_file in
bouncer.toml. "bouncerctl init" has done so in what it has made.

The file gets mode 0640 and, run as root, the group mosquitto. Keep a copy: without
it, every device with a public key needs the public half of another key.`,
		Example: `  bouncerctl command-key make /etc/mosquitto-bouncer/command-keys.toml`,
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
			text, err := newCommandKeys()
			if err != nil {
				return err
			}
			var made files.Creation
			if err := made.File(path, text, 0o640, owner); err != nil {
				if errors.Is(err, fs.ErrExist) {
					err = fmt.Errorf("%s already exists; keys are never overwritten, name another file, or replace them with bouncerctl command-key rotate", path)
				}
				return errors.Join(err, made.Undo())
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), `Made the keys %s.

Next:
  1. Name them in %s:
     [command]
     keys_file = %q
  2. Send SIGHUP to the broker, which then reads them.
  3. Give the public halves to the devices that have a public key; new bundles
     contain them:
     bouncerctl command-key export%s
`, path, *configFile, path, elsewhere(*configFile))
			return err
		},
	}
}
