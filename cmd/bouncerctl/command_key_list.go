package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
)

// A commandKeyJSON is a key as --json shows it.
type commandKeyJSON struct {
	Algorithm   string    `json:"algorithm"`
	Fingerprint string    `json:"fingerprint"`
	Made        time.Time `json:"made"`
	From        time.Time `json:"from"`
	Signs       bool      `json:"signs"`
}

func newCommandKeyList(configFile *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "Show the gateway's keys for commands",
		Long: `Show the gateway's keys for commands: algorithm, fingerprint of the public half (the
SHA-256 of its DER encoding), and when each begins to sign.`,
		Example: `  bouncerctl command-key list --json`,
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			set, _, err := loadCommandKeys(*configFile)
			if err != nil {
				return err
			}
			now := time.Now()
			keys := []commandKeyJSON{}
			for _, k := range set.Keys() {
				a := k.Public().Algorithm()
				signs := set.Signing(a, now)
				keys = append(keys, commandKeyJSON{string(a), k.Public().Fingerprint().String(), k.Made, k.From, signs != nil && signs.Public().Equal(k.Public())})
			}
			if asJSON {
				text, err := output.JSON(keys)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", text)
				return err
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ALGORITHM\tFINGERPRINT\tSIGNS")
			for _, k := range keys {
				state := "no more; the next rotation deletes it"
				switch {
				case k.Signs:
					state = "now"
				case k.From.After(now):
					state = "from " + output.Instant(k.From)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", k.Algorithm, k.Fingerprint, state)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
