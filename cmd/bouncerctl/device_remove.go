package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
)

func newDeviceRemove(configFile *string) *cobra.Command {
	var release bool
	c := &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a device from the registry",
		Long: `Remove a device from the registry: it is disconnected, its publishes are refused,
and its secrets are deleted. Its bundle is not removed. It can still connect with
its certificate, but it stays confined, even after a restart: it publishes nothing
and reads nothing. With --release it is treated as an ordinary client instead. To
shut out a device that was lost or stolen, disable it or revoke its certificate.`,
		Example: `  bouncerctl device remove sensor_001
  bouncerctl device remove dashboard --release`,
		Args: oneID,
		RunE: func(c *cobra.Command, args []string) error {
			id := args[0]
			cfg, err := config.Load(*configFile)
			if err != nil {
				return err
			}
			err = withStore(*configFile, func(s *registry.Store) error { return s.Remove(c.Context(), id) })
			if err != nil {
				return deviceError(id, err)
			}
			fmt.Fprintf(c.OutOrStdout(), "Removed %s. Its certificate still connects; to shut out a lost device, disable it instead.\n", output.Printable(id))
			if !release {
				return nil
			}
			return releaseIDs(c.Context(), c.OutOrStdout(), cfg, []string{id})
		},
	}
	c.Flags().BoolVar(&release, "release", false, "treat its certificate as that of an ordinary client")
	return c
}
