package main

import (
	"fmt"

	"github.com/spf13/cobra"

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
			path, err := makeKeyFile(args[0], append(registry.GenerateKey(), '\n'), "a key is never overwritten, name another file")
			if err != nil {
				return err
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
