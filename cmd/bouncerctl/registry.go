package main

import (
	"github.com/spf13/cobra"
)

func newRegistry(configFile *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "registry",
		Short: "Encrypt the secrets in the database, and back it up",
		Long:  `Maintain the database of devices as a whole, while the broker runs or not.`,
		Example: `  bouncerctl registry key /etc/mosquitto-bouncer/registry.key
  bouncerctl registry encrypt
  bouncerctl registry backup /var/backups/devices.db`,
	}
	needsCommand(c)
	c.AddCommand(newRegistryKey(configFile), newRegistryEncrypt(configFile), newRegistryDecrypt(configFile), newRegistryBackup(configFile))
	return c
}
