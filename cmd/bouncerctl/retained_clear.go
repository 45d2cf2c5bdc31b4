package main

import (
	"strings"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/order"
)

func newRetainedClear(configFile *string) *cobra.Command {
	var devices, topics []string
	c := &cobra.Command{
		Use:   "clear {--device ID | --topic TOPIC}",
		Short: "Remove retained messages from the broker",
		Long: `Remove what the broker retains on all topics of a device, registered or removed:
gated, response, command and rejected topics; or on such topics by their names. The
plugin publishes an empty retained message on each; subscribers get nothing.`,
		Example: `  bouncerctl retained clear --device sensor_001 --device sensor_002
  bouncerctl retained clear --topic device/sensor_001/data`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case len(devices)+len(topics) == 0:
				return usage(c, "neither --device nor --topic given")
			case len(devices)+len(topics) > order.MaxNames:
				return usage(c, "more than %d devices and topics at a time", order.MaxNames)
			}
			for _, id := range devices {
				if !deviceid.Valid(id) {
					return noDeviceID(c, id)
				}
			}
			for _, topic := range topics {
				if strings.ContainsAny(topic, "+#") {
					return usage(c, "--topic %q has a wildcard; name one topic", topic)
				}
			}
			cfg, err := config.Load(*configFile)
			if err != nil {
				return err
			}
			var what []string
			if len(devices) > 0 {
				what = append(what, "topics of "+output.Counted(int64(len(devices)), "device"))
			}
			if len(topics) > 0 {
				what = append(what, output.Counted(int64(len(topics)), "topic"))
			}
			return carryOut(c.Context(), c.OutOrStdout(), cfg, order.Order{Kind: order.ClearRetained, Names: topics, Devices: devices},
				"cleared", strings.Join(what, ", "))
		},
	}
	c.Flags().StringArrayVar(&devices, "device", nil, "the `id` of a device, registered or removed; repeatable")
	c.Flags().StringArrayVar(&topics, "topic", nil, "one `topic`; repeatable")
	return c
}
