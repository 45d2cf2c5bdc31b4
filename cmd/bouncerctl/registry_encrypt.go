package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
)

func newRegistryEncrypt(configFile *string) *cobra.Command {
	var oldKey string
	c := &cobra.Command{
		Use:   "encrypt",
		Short: "Encrypt every secret in the database under [registry] key_file",
		Long: `Encrypt every secret in the database under the key in [registry] key_file, in
place: all or none. The broker must have read the key before, at its start or on
SIGHUP. Other programs can no longer read the secrets in the database.

To change the key: name the new one in bouncer.toml and the old one here.`,
		Example: `  bouncerctl registry encrypt
  bouncerctl registry encrypt --old-key-file /root/registry.key.old`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(*configFile)
			if err != nil {
				return err
			}
			if cfg.Registry.Key == nil {
				return fmt.Errorf("%s: no key is set; make one with bouncerctl registry key FILE and name it in [registry] key_file", *configFile)
			}
			var from *registry.Key
			if oldKey != "" {
				content, err := readFrom("--old-key-file", oldKey, c.InOrStdin())
				if err != nil {
					return err
				}
				digits, err := parseSecret(content, oldKey)
				if err == nil {
					from, err = registry.NewKey(digits)
				}
				if err != nil {
					return fmt.Errorf("--old-key-file: %w", err)
				}
			}
			return recrypt(c, cfg, from, "Encrypted")
		},
	}
	c.Flags().StringVar(&oldKey, "old-key-file", "", "the `file` with the key they are encrypted under now, - for standard input")
	return c
}

func recrypt(c *cobra.Command, cfg *config.Config, from *registry.Key, done string) error {
	store, err := openStore(cfg, false)
	if err != nil {
		return err
	}
	n, err := store.Recrypt(c.Context(), from)
	if err == nil {
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s %d secrets.\n", done, n)
	}
	return errors.Join(err, store.Close())
}
