package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/plugin/registry"
)

func newRegistryBackup(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the database while it is in use",
		Long: `Copy a consistent state of the database into a new file, mode 0600, while the
broker and other programs use it. Secrets in it are as they are stored: see
"bouncerctl registry encrypt".`,
		Example: `  bouncerctl registry backup /var/backups/devices-$(date +%F).db`,
		Args:    oneFile,
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(*configFile, func(s *registry.Store) error {
				if err := files.Trusted(filepath.Dir(args[0]), nil); err != nil {
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
