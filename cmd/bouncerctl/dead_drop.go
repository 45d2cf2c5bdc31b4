package main

import (
	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/deadletter"
)

func newDeadDrop(configFile *string) *cobra.Command {
	var s selection
	var yes bool
	c := &cobra.Command{
		Use:   "drop {ID... | --device ID | --all --yes}",
		Short: "Remove dead letters for good",
		Long: `Remove dead letters for good: the messages are lost. Letters that were requeued
and not yet taken back are dropped too.

ID is a letter's number in the list. If there are several, all are dropped or none.`,
		Example: `  bouncerctl dead drop 17 18
  bouncerctl dead drop --device sensor_001`,
		RunE: func(c *cobra.Command, args []string) error {
			filter, err := s.filter(c, args)
			if err != nil {
				return err
			}
			if s.all && !yes {
				return usage(c, "--all drops every dead letter for good; add --yes to do that")
			}
			return changeLetters(*configFile, c.OutOrStdout(), "Dropped", func(store *deadletter.Store) (int64, error) {
				return store.Drop(c.Context(), filter)
			})
		},
	}
	s.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "with --all: yes, all of them")
	return c
}
