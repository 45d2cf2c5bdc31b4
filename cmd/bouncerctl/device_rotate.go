package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/bundle"
	"mosquitto-bouncer/plugin/registry"
)

// maxGrace bounds how long a replaced secret is accepted.
const maxGrace = 365 * 24 * time.Hour

type rotateOptions struct {
	add   addOptions // for the secret and where it goes
	grace time.Duration
	now   bool // as with a grace of 0
}

func newDeviceRotate(configFile *string) *cobra.Command {
	var o rotateOptions
	c := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give a device a new secret and accept the old one for a while",
		Long: `Give a device a new secret and make a directory with it. The old secret stays
valid for the time of --grace, so that the device can be given the new one
meanwhile. Commands to the device are signed with the old secret until a message
signed with the new one is accepted, or the time is over. With --now, for a secret
that was stolen, every old secret ends immediately, and no command is signed with
one; --grace 0 is the same.

In the file of --secret-file, a byte order mark at the beginning and one line end,
LF or CRLF, at the end are not part of the secret. The file may be UTF-16.

A device that signs with a private key is given a new one with --key, which names the
file with its public half. Nothing has to be handed over, so no directory is made.
With its present key and --now, the old ones end.`,
		Example: `  bouncerctl device rotate sensor_001
  bouncerctl device rotate sensor_001 --now --out /media/usb/sensor_001
  bouncerctl device rotate sensor_005 --key sensor_005.pub --grace 7d`,
		Args: oneID,
		RunE: func(c *cobra.Command, args []string) error {
			if o.now && c.Flags().Changed("grace") {
				return usage(c, "--now and --grace exclude each other")
			}
			if o.now {
				o.grace = 0
			}
			if o.grace < 0 || o.grace > maxGrace {
				return usage(c, "--grace %s is not 0 to 365 days", o.grace)
			}
			if o.add.keyFile != "" {
				if o.add.secretFile != "" || o.add.out != "" {
					return usage(c, "--key excludes --secret-file and --out")
				}
				return o.runKey(c.Context(), args[0], *configFile, c.InOrStdin(), c.OutOrStdout())
			}
			return o.run(args[0], *configFile, c.InOrStdin(), c.OutOrStdout())
		},
	}
	o.grace = 24 * time.Hour
	c.Flags().Var((*span)(&o.grace), "grace", "how long the old secret is still accepted, such as 90m, 24h or 7d")
	c.Flags().BoolVar(&o.now, "now", false, "end every old secret immediately: for one that was stolen")
	c.Flags().StringVar(&o.add.secretFile, "secret-file", "", "read the new secret from `file`, - for standard input; a line end at its end is not part of it")
	c.Flags().StringVar(&o.add.keyFile, "key", "", "the new public key is in `file`, - for standard input: of a device that signs with a private key")
	c.Flags().StringVar(&o.add.out, "out", "", "the `directory` to make (default devices/ID and the time, next to the database)")
	return c
}

// ends is when the old secret does; zero: at once.
func (o *rotateOptions) ends() (ends time.Time) {
	if o.grace > 0 {
		ends = time.Now().Add(o.grace + time.Second - time.Nanosecond).Truncate(time.Second)
	}
	return ends
}

// runKey is run for a device with a public key.
func (o *rotateOptions) runKey(ctx context.Context, id, configFile string, stdin io.Reader, stdout io.Writer) error {
	key, err := readPublicKey(o.add.keyFile, stdin)
	if err != nil {
		return err
	}
	ends, said := o.ends(), "The old ones are no longer accepted."
	if o.grace > 0 {
		said = fmt.Sprintf("The old one is still accepted until %s.", ends.UTC().Format(time.RFC3339))
	}
	err = withStore(configFile, func(s *registry.Store) error { return deviceError(id, s.RotateKey(ctx, id, key, ends)) })
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s signs with this key from now on, %s; the fingerprint of its public half is\n  %s\n%s\n", id, key.Algorithm(), key.Fingerprint(), said)
	return err
}

func (o *rotateOptions) run(id, configFile string, stdin io.Reader, stdout io.Writer) error {
	secret, err := o.add.secret(stdin)
	if err != nil {
		return err
	}
	ends := o.ends()
	said := "The old ones are no longer accepted, and nothing is signed with them."
	if o.grace > 0 {
		said = fmt.Sprintf("The old one is still accepted until %s. Commands are signed with it until then, or until a message signed with the new one is accepted.",
			ends.UTC().Format(time.RFC3339))
	}
	out, names, err := hand(id, configFile, o.add.out, false, nil, secret, ends, func(ctx context.Context, s *registry.Store, _ bundle.Certificate) error {
		return s.Rotate(ctx, id, secret, ends)
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "Made a new secret for %s. It is in %s:\n  %s\n%s\n", id, out, strings.Join(names, "  "), said)
	return err
}
