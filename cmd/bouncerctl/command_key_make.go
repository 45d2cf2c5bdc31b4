package main

import (
	"fmt"

	"github.com/spf13/cobra"
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
			text, err := newCommandKeys()
			if err != nil {
				return err
			}
			path, err := makeKeyFile(args[0], text, "keys are never overwritten, name another file, or replace them with bouncerctl command-key rotate")
			if err != nil {
				return err
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
