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
		Short: "Make a device unknown",
		Long: `Make a device unknown: it is disconnected, its publishes are refused, its
secrets are gone. Its bundle is left where it is. Its certificate still lets it
connect, but it stays confined to what it was allowed as a device, over restarts
too: it publishes nothing and reads nothing. With --release that ends, and it is a
client like any other. To shut out a device that was lost or stolen, disable it
instead, or revoke its certificate.`,
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
	c.Flags().BoolVar(&release, "release", false, "let its certificate be a client like any other")
	return c
}
