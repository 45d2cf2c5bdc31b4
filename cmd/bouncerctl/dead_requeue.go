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
		Short: "Deliver dead letters again",
		Long: `Deliver dead letters again. The broker takes them back within seconds, or when it
runs. Each goes behind the device's queued messages and keeps its idempotency key.
A message that the backend refuses again becomes a dead letter again.

ID is a letter's number in the list. If there are several, all are requeued or none.`,
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
