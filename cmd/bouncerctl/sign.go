package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
)

type signOptions struct {
	device, secretFile, keyFile, messageID string
	timestamp                              int64
}

func newSign(configFile *string) *cobra.Command {
	var o signOptions
	c := &cobra.Command{
		Use:   "sign --device ID",
		Short: "Make a signed message of a payload",
		Long: `Read a payload, one JSON value, from standard input, and print the message to
publish: signed over the unchanged payload, with the present time and a new
message id unless they are given. The secret is the newest of the device in the
registry, or the one in --secret-file, for which no registry is needed. For a device
with a public key, --private-key names the file with its private half, in PEM.`,
		Example: `  bouncerctl sign --device sensor_001 <payload.json
  echo 1 | bouncerctl sign --device sensor_001 --secret-file secret --timestamp 1727712000 \
    --message-id 550e8400-e29b-41d4-a716-446655440000`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.device == "" {
				return usage(c, "--device is missing")
			}
			if o.secretFile == "-" || o.keyFile == "-" {
				return usage(c, "standard input is the payload; name a file")
			}
			if o.secretFile != "" && o.keyFile != "" {
				return usage(c, "--secret-file and --private-key exclude each other")
			}
			payload, err := readFrom("the payload", "-", c.InOrStdin())
			if err != nil {
				return err
			}
			signer, err := o.signer(c.Context(), *configFile, c.InOrStdin())
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
			message, err := envelope.Sign(signer, o.device, timestamp, id, payload)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", message)
			return err
		},
	}
	c.Flags().StringVar(&o.device, "device", "", "the device's `id`")
	c.Flags().StringVar(&o.secretFile, "secret-file", "", "sign with the secret in `file`")
	c.Flags().StringVar(&o.keyFile, "private-key", "", "sign with the private key in `file`: Ed25519 or ECDSA on P-256")
	c.Flags().Int64Var(&o.timestamp, "timestamp", 0, "the `seconds` since 1970 (default: now)")
	c.Flags().StringVar(&o.messageID, "message-id", "", "the message's `UUID` (default: a new one)")
	return c
}

// signer returns what the message is signed with.
func (o *signOptions) signer(ctx context.Context, configFile string, stdin io.Reader) (envelope.Signer, error) {
	if o.keyFile == "" {
		secrets, err := readSecrets(ctx, configFile, o.secretFile, o.device, stdin)
		if errors.Is(err, registry.ErrPublicKey) {
			return nil, fmt.Errorf("device %q signs with a key of which only the public half is registered; name the private one with --private-key", o.device)
		}
		if err != nil {
			return nil, err
		}
		return envelope.NewSigner(secrets[0]), nil
	}
	content, err := readFrom("--private-key", o.keyFile, stdin)
	if err != nil {
		return nil, err
	}
	signer, err := publickey.ReadSigner(content)
	if err != nil {
		return nil, fmt.Errorf("--private-key: %w", err)
	}
	return signer, nil
}
