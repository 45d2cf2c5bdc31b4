package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/order"
	"mosquitto-bouncer/plugin/registry"
)

func newDeviceRelease(configFile *string) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "release {ID... | --all}",
		Short: "Treat removed devices as ordinary clients",
		Long: `A device that was removed stays confined: a client with its certificate publishes
and reads nothing. After its release, [acl] decides what a client with this
certificate may do. With --all every removed device is released.`,
		Example: `  bouncerctl device release sensor_001 sensor_002
  bouncerctl device release --all`,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return usage(c, "--all and device ids exclude each other")
			case !all && len(args) == 0:
				return usage(c, "no device id given")
			case len(args) > order.MaxNames:
				return usage(c, "more than %d device ids at a time", order.MaxNames)
			}
			for _, id := range args {
				if !deviceid.Valid(id) {
					return noDeviceID(c, id)
				}
			}
			cfg, err := config.Load(*configFile)
			if err != nil {
				return err
			}
			err = withStore(*configFile, func(s *registry.Store) error {
				for _, id := range args {
					if _, err := s.Get(c.Context(), id); err == nil {
						return fmt.Errorf("device %q is registered; remove it first", id)
					} else if !errors.Is(err, registry.ErrNotFound) {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			return releaseIDs(c.Context(), c.OutOrStdout(), cfg, args)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "release every removed device")
	return c
}

func releaseIDs(ctx context.Context, stdout io.Writer, cfg *config.Config, ids []string) error {
	what := "every removed device"
	if len(ids) > 0 {
		what = output.Counted(int64(len(ids)), "device id")
	}
	return carryOut(ctx, stdout, cfg, order.Order{Kind: order.Release, Names: ids}, "released", what)
}
