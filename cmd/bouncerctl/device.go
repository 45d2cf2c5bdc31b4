package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/registry"
)

func newDevice(configFile *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "device",
		Short: "Register devices, show, renew, disable and remove them",
		Long: `Manage the registry of devices. The broker may run or not; a running one applies
a change within a second.`,
		Example: `  bouncerctl device add sensor_001
  bouncerctl device list`,
	}
	needsCommand(c)
	c.AddCommand(
		newDeviceAdd(configFile),
		newDeviceImport(configFile),
		newDeviceList(configFile),
		newDeviceShow(configFile),
		newDeviceRotate(configFile),
		newDeviceRenew(configFile),
		newDevicePin(configFile),
		newDeviceUnpin(configFile),
		newDeviceRemove(configFile),
		newDeviceRelease(configFile),
		newDeviceChange(configFile, "disable", "Refuse a device's publishes until it is enabled again",
			`Disconnect a device and refuse its publishes until it is enabled again. It may
still connect.`,
			func(s *registry.Store, ctx context.Context, id string) error { return s.SetDisabled(ctx, id, true) }, "Disabled %s."),
		newDeviceChange(configFile, "enable", "Accept a disabled device's publishes again",
			`Accept a disabled device's publishes again, with the secret it had.`,
			func(s *registry.Store, ctx context.Context, id string) error { return s.SetDisabled(ctx, id, false) }, "Enabled %s."),
	)
	return c
}

// newDeviceChange makes a command that changes one registered device.
func newDeviceChange(configFile *string, verb, short, long string, change func(*registry.Store, context.Context, string) error, done string) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " ID",
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf("  bouncerctl device %s sensor_001", verb),
		Args:    oneID,
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(*configFile, func(s *registry.Store) error {
				if err := change(s, c.Context(), args[0]); err != nil {
					return deviceError(args[0], err)
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), done+"\n", output.Printable(args[0]))
				return err
			})
		},
	}
}
