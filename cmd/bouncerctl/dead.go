package main

import (
	"github.com/spf13/cobra"
)

func newDead(configFile *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "dead",
		Short: "List dead letters, requeue and drop them",
		Long: `Manage the dead letters: accepted messages that the backend refused, or that could
not be delivered in time. They are kept until they are requeued or dropped. The
broker may run or not.`,
		Example: `  bouncerctl dead list --since 24h
  bouncerctl dead requeue --device sensor_001`,
	}
	needsCommand(c)
	c.AddCommand(newDeadList(configFile), newDeadShow(configFile), newDeadRequeue(configFile), newDeadDrop(configFile))
	return c
}
