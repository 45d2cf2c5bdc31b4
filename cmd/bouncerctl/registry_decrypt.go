package main

import (
	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
)

func newRegistryDecrypt(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "decrypt",
		Short: "Store every secret in the database in plain text",
		Long: `Store every secret in the database in plain text again, in place: all or none.
Leave [registry] key_file in bouncer.toml until that is done; the broker reads
both. As long as it is there, new secrets are encrypted.`,
		Example: `  bouncerctl registry decrypt`,
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(*configFile)
			if err != nil {
				return err
			}
			from, err := registryKey(cfg)
			if err != nil {
				return err
			}
			cfg.Registry.Key = nil
			return recrypt(c, cfg, from, "Decrypted")
		},
	}
}
