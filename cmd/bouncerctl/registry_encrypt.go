package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
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

// oneFile wants a file and nothing else.
func oneFile(c *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usage(c, "no file given")
	case 1:
		return nil
	}
	return usage(c, "unexpected argument %q, one file at a time", args[1])
}

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

func newRegistryEncrypt(configFile *string) *cobra.Command {
	var oldKey string
	c := &cobra.Command{
		Use:   "encrypt",
		Short: "Encrypt every secret in the database under [registry] key_file",
		Long: `Encrypt every secret in the database under the key in [registry] key_file, in
place: all or none. The broker must have read the key before, at its start or on
SIGHUP. Programs that read the secrets in the database themselves cannot any
more.

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

func newRegistryBackup(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the database while it is in use",
		Long: `Copy the database into a new file, mode 0600, as it is at one moment, while the
broker and other programs use it. Secrets in it are as they are stored: see
"bouncerctl registry encrypt".`,
		Example: `  bouncerctl registry backup /var/backups/devices-$(date +%F).db`,
		Args:    oneFile,
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(*configFile, func(s *registry.Store) error {
				if err := trustedDirectory(filepath.Dir(args[0]), nil); err != nil {
					return err
				}
				if err := s.Backup(c.Context(), args[0]); err != nil {
					if errors.Is(err, fs.ErrExist) {
						return fmt.Errorf("%s already exists; a backup is never overwritten, name another file", args[0])
					}
					return err
				}
				info, err := os.Stat(args[0])
				if err != nil {
					return err
				}
				return reportBackup(c.OutOrStdout(), args[0], info.Size())
			})
		},
	}
}

func reportBackup(w io.Writer, file string, size int64) error {
	_, err := fmt.Fprintf(w, "Copied %d bytes into %s.\n", size, file)
	return err
}
