package main

import (
	"github.com/spf13/cobra"
)

func newRetained(configFile *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "retained",
		Short: "Remove what the broker retains on gated topics",
		Long: `The broker keeps the last retained message of each topic for later subscribers.
On gated topics it serves only what the plugin has verified; the rest stays where
it is until it is cleared.`,
		Example: `  bouncerctl retained clear --device sensor_001`,
	}
	needsCommand(c)
	c.AddCommand(newRetainedClear(configFile))
	return c
}
