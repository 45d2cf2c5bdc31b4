package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/suspension"
)

func newQueueResume(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "resume [DEVICE]",
		Short: "Deliver again where the backend answered 410 Gone",
		Long: `Deliver again to a URL of the backend that answered 410 Gone. If the URL of
[backend] contains the device id, name the DEVICE; otherwise the URL is that of all
devices. The messages have been kept. A running broker continues within a second.`,
		Example: `  bouncerctl queue resume sensor_001
  bouncerctl queue resume`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return oneID(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			device, what := "", "delivery"
			if len(args) == 1 {
				device, what = args[0], "delivery for "+args[0]
				if !deviceid.Valid(device) {
					return noDeviceID(c, device)
				}
			}
			cfg, err := config.Load(*configFile)
			if err != nil {
				return err
			}
			dir := filepath.Join(cfg.StateDir, suspension.DirName)
			err = suspension.Resume(dir, device)
			if errors.Is(err, fs.ErrNotExist) {
				list, err := suspension.List(dir)
				if err != nil {
					return err
				}
				return notSuspended(what, list)
			}
			if errors.Is(err, fs.ErrPermission) {
				return notPermitted(err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "Resumed: %s\n", what)
			return err
		},
	}
}

// notSuspended says what is, and how it is resumed.
func notSuspended(what string, list []suspension.Suspension) error {
	switch {
	case len(list) == 0:
		return fmt.Errorf("%s is not suspended; no delivery is", what)
	case list[0].Device == "":
		return fmt.Errorf("%s is not suspended, but that for all devices is; to resume it: bouncerctl queue resume", what)
	}
	return fmt.Errorf("%s is not suspended, but that for %s is; to resume it: bouncerctl queue resume %s", what, suspended(list), list[0].Device)
}

// suspended names what is suspended, of many the first.
func suspended(list []suspension.Suspension) string {
	const shown = 5
	var names []string
	for _, s := range list[:min(len(list), shown)] {
		names = append(names, cmp.Or(s.Device, "all devices"))
	}
	text := strings.Join(names, ", ")
	if more := len(list) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
