package main

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/deadletter"
)

// maxPreview is how much of a payload show prints, in bytes.
const maxPreview = 1024

func newDeadShow(configFile *string) *cobra.Command {
	var payload bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show a dead letter",
		Long: `Show a dead letter: the message and the backend's answer to it.

ID is its number in the list.`,
		Example: `  bouncerctl dead show 17
  bouncerctl dead show 17 --payload | jq .`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(c, "unexpected argument %q, one letter at a time", args[1])
			}
			_, err := letterIDs(c, args)
			return err
		},
		RunE: func(c *cobra.Command, args []string) error {
			ids, err := letterIDs(c, args)
			if err != nil {
				return err
			}
			return withLetters(*configFile, func(s *deadletter.Store) error {
				l, err := s.Get(c.Context(), ids[0])
				if err != nil {
					return letterError(err)
				}
				if payload {
					_, err := c.OutOrStdout().Write(l.Payload)
					return err
				}
				return showLetter(l, c.OutOrStdout())
			})
		},
	}
	c.Flags().BoolVar(&payload, "payload", false, "print the payload's bytes and nothing else")
	return c
}

func showLetter(l deadletter.Letter, w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, value string) { fmt.Fprintf(table, "%s:\t%s\n", name, value) }
	line("id", strconv.FormatInt(l.ID, 10))
	line("state", state(l))
	if !l.RequeuedAt.IsZero() {
		line("requeued", output.Instant(l.RequeuedAt))
	}
	line("device", output.Quoted(l.Device))
	line("message id", output.Quoted(l.MessageID))
	line("timestamp", fmt.Sprintf("%d (%s)", l.Timestamp, output.Instant(time.Unix(l.Timestamp, 0))))
	line("topic", output.Quoted(l.Topic))
	if l.Traceparent != "" {
		line("traceparent", output.Quoted(l.Traceparent))
	}
	line("accepted", output.Instant(l.AcceptedAt))
	line("died", output.Instant(l.DiedAt))
	line("reason", output.Quoted(l.Reason))
	line("status", status(l.Status))
	if l.Excerpt != "" {
		line("response", output.Quoted(l.Excerpt))
	}
	line("attempts", strconv.Itoa(l.Attempts))
	line("deaths", strconv.Itoa(l.Deaths))
	line("bytes", strconv.FormatInt(l.Bytes, 10))
	preview, more := l.Payload, ""
	if len(preview) > maxPreview {
		preview, more = preview[:maxPreview], " ... (--payload prints all)"
	}
	line("payload", output.Printable(string(preview))+more)
	return table.Flush()
}
