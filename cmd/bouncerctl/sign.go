package main

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/envelope"
)

type signOptions struct {
	device, secretFile, messageID string
	timestamp                     int64
}

func newSign(configFile *string) *cobra.Command {
	var o signOptions
	c := &cobra.Command{
		Use:   "sign --device ID",
		Short: "Make a signed message of a payload",
		Long: `Read a payload, one JSON value, from standard input, and print the message to
publish: signed over the unchanged payload, with the present time and a new
message id unless they are given. The secret is the newest of the device in the
registry, or the one in --secret-file, for which no registry is needed.`,
		Example: `  bouncerctl sign --device sensor_001 <payload.json
  echo 1 | bouncerctl sign --device sensor_001 --secret-file secret --timestamp 1727712000 \
    --message-id 550e8400-e29b-41d4-a716-446655440000`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.device == "" {
				return usage(c, "--device is missing")
			}
			if o.secretFile == "-" {
				return usage(c, "--secret-file: standard input is the payload; name a file")
			}
			payload, err := readFrom("the payload", "-", c.InOrStdin())
			if err != nil {
				return err
			}
			secrets, err := readSecrets(c.Context(), *configFile, o.secretFile, o.device, c.InOrStdin())
			if err != nil {
				return err
			}
			timestamp, id := o.timestamp, o.messageID
			if !c.Flags().Changed("timestamp") {
				timestamp = time.Now().Unix()
			}
			if id == "" {
				id = uuid.NewString()
			}
			message, err := envelope.Sign(envelope.NewSigner(secrets[0]), o.device, timestamp, id, payload)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", message)
			return err
		},
	}
	c.Flags().StringVar(&o.device, "device", "", "the device's `id`")
	c.Flags().StringVar(&o.secretFile, "secret-file", "", "sign with the secret in `file`")
	c.Flags().Int64Var(&o.timestamp, "timestamp", 0, "the `seconds` since 1970 (default: now)")
	c.Flags().StringVar(&o.messageID, "message-id", "", "the message's `UUID` (default: a new one)")
	return c
}
