package main

import (
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/deadletter"
)

func newDeadRequeue(configFile *string) *cobra.Command {
	var s selection
	c := &cobra.Command{
		Use:   "requeue {ID... | --device ID | --all}",
		Short: "Have dead letters delivered again",
		Long: `Have dead letters delivered again: the broker takes them back within seconds, or
once it runs, each behind what its device has queued, and with the idempotency
key it had. What the backend refuses once more is a dead letter again.

ID is a letter's number in the list. Of several, all are requeued or none.`,
		Example: `  bouncerctl dead requeue 17 18
  bouncerctl dead requeue --all`,
		RunE: func(c *cobra.Command, args []string) error {
			filter, err := s.filter(c, args)
			if err != nil {
				return err
			}
			return changeLetters(*configFile, c.OutOrStdout(), "Requeued", func(store *deadletter.Store) (int64, error) {
				return store.Requeue(c.Context(), filter, time.Now())
			})
		},
	}
	s.flags(c)
	return c
}
