package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/cmd/bouncerctl/output"
)

type commandKeyRotateOptions struct {
	overlap   time.Duration
	now       bool
	algorithm string
}

func newCommandKeyRotate(configFile *string) *cobra.Command {
	var o commandKeyRotateOptions
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the gateway's keys for commands",
		Long: `Make new keys that sign commands after the time of --overlap. Until then the present
keys sign, and devices are given the public halves of the new ones: bundles made from
now on contain both, and so does the output of "command-key export". A device that
does not know the new key by then refuses commands, and executes none.

With --now, for keys that were stolen, the new ones sign immediately, and the present
ones are deleted. Devices accept what the thief signs until they are given new public
keys without the stolen ones.

Send SIGHUP to the broker afterwards.`,
		Example: `  bouncerctl command-key rotate --overlap 60d
  bouncerctl command-key rotate --now --algorithm p256`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.now && c.Flags().Changed("overlap") {
				return usage(c, "--now and --overlap exclude each other")
			}
			if o.now {
				o.overlap = 0
			} else if o.overlap <= 0 || o.overlap > maxGrace {
				return usage(c, "--overlap %s is not above 0, and at most 365 days; to begin immediately use --now", o.overlap)
			}
			return o.run(c, *configFile)
		},
	}
	o.overlap = 30 * 24 * time.Hour
	c.Flags().Var((*span)(&o.overlap), "overlap", "when the new keys begin to sign, such as 36h or 30d from now")
	c.Flags().BoolVar(&o.now, "now", false, "begin immediately, and delete the present keys: for keys that were stolen")
	addAlgorithm(c, &o.algorithm)
	return c
}

func (o *commandKeyRotateOptions) run(c *cobra.Command, configFile string) error {
	algorithms, err := algorithmsOf(c, o.algorithm)
	if err != nil {
		return err
	}
	set, path, err := loadCommandKeys(configFile)
	if err != nil {
		return err
	}
	now := time.Now()
	from := now.Add(o.overlap)
	next, err := set.With(now, from, algorithms...)
	if err != nil {
		return err
	}
	text, err := next.Encode()
	if err != nil {
		return err
	}
	reader, err := files.BrokerAccount()
	if err != nil {
		return err
	}
	if err := files.Replace(path, text, reader); err != nil {
		return err
	}
	said := fmt.Sprintf("They sign from %s on. Until then, give their public halves to the devices:\n  bouncerctl command-key export%s", output.Instant(from), elsewhere(configFile))
	if o.now {
		said = fmt.Sprintf("They sign as soon as the broker has read them, and the old ones are deleted. Give their\npublic halves to the devices, and have them forget the old ones:\n  bouncerctl command-key export%s", elsewhere(configFile))
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "Made new keys in %s. Send SIGHUP to the broker, which then reads them.\n%s\n", path, said)
	return err
}
