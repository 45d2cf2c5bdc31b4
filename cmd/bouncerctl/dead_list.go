package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/check"
	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/forward"
)

// defaultLimit is how many lines are printed of what may be many.
const defaultLimit = 100

// deathReasons are what a letter can have died of.
var deathReasons = []string{forward.ReasonRefused, forward.ReasonExpired, forward.ReasonUnreadable, forward.ReasonUnreadableAnswer, forward.ReasonPanic}

func newDeadList(configFile *string) *cobra.Command {
	var filter deadletter.Filter
	var since span
	var limit int
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the dead letters",
		Long: `List the dead letters, the newest first, and how many there are.

A letter is "dead", or "requeued" until the broker has taken it back.`,
		Example: `  bouncerctl dead list
  bouncerctl dead list --device sensor_001 --reason refused --since 24h
  bouncerctl dead list --limit 0 --json | jq '.letters[] | select(.status == 422) | .id'`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("device") && !deviceid.Valid(filter.Device) {
				return noDeviceID(c, filter.Device)
			}
			if c.Flags().Changed("reason") && !slices.Contains(deathReasons, filter.Reason) {
				return usage(c, "--reason %q is not one of %s", filter.Reason, strings.Join(deathReasons, ", "))
			}
			if limit < 0 {
				return usage(c, "--limit %d is less than 0", limit)
			}
			if c.Flags().Changed("since") {
				if since <= 0 {
					return usage(c, "--since %v is not in the past", &since)
				}
				filter.Since = time.Now().Add(-time.Duration(since))
			}
			list := listDead
			if asJSON {
				list = listDeadJSON
			}
			return withLetters(*configFile, func(s *deadletter.Store) error {
				if err := list(c.Context(), s, filter, limit, c.OutOrStdout()); err != nil || asJSON {
					return err
				}
				return printLetterRoom(c.Context(), *configFile, s, c.OutOrStdout())
			})
		},
	}
	c.Flags().StringVar(&filter.Device, "device", "", "letters of the device `ID`")
	c.Flags().StringVar(&filter.Reason, "reason", "", "letters that died of `REASON`: refused, expired, unreadable, unreadable_answer or panic")
	c.Flags().Var(&since, "since", "letters that died within this `time`, such as 90m, 24h or 7d")
	c.Flag("since").DefValue = ""
	c.Flags().IntVar(&limit, "limit", defaultLimit, "at most `N` letters, 0 for all")
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return c
}

func listDead(ctx context.Context, store *deadletter.Store, filter deadletter.Filter, limit int, w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "ID\tDIED\tDEVICE\tMESSAGE ID\tREASON\tSTATUS\tATTEMPTS\tBYTES\tSTATE")
	shown := int64(0)
	for l, err := range store.List(ctx, filter, limit) {
		if err != nil {
			return err
		}
		shown++
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", l.ID, output.Instant(l.DiedAt), output.Quoted(l.Device), output.Quoted(l.MessageID),
			output.Quoted(l.Reason), status(l.Status), l.Attempts, l.Bytes, state(l))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	matching, err := store.Count(ctx, filter)
	if err != nil {
		return err
	}
	totals, err := store.Totals(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\nShown: %d of %s. In all: %s, %d to be requeued, %s of payload.\n",
		shown, output.Counted(max(matching, shown), "letter"), output.Counted(totals.Letters, "letter"), totals.Requeued, output.Counted(totals.Bytes, "byte"))
	return err
}

// listDeadJSON prints one letter a line, as they come.
func listDeadJSON(ctx context.Context, store *deadletter.Store, filter deadletter.Filter, limit int, w io.Writer) error {
	type letter struct {
		ID          int64      `json:"id"`
		Device      string     `json:"device"`
		MessageID   string     `json:"message_id"`
		Timestamp   int64      `json:"timestamp"`
		AcceptedAt  time.Time  `json:"accepted_at"`
		DiedAt      time.Time  `json:"died_at"`
		Topic       string     `json:"topic"`
		Bytes       int64      `json:"bytes"`
		Reason      string     `json:"reason"`
		Status      *int       `json:"status"` // null if there was no response
		Excerpt     string     `json:"excerpt"`
		Attempts    int        `json:"attempts"`
		Deaths      int        `json:"deaths"`
		RequeuedAt  *time.Time `json:"requeued_at"` // null if it is not to be requeued
		Traceparent string     `json:"traceparent,omitempty"`
	}
	type totals struct {
		Matching int64 `json:"matching"` // the filter, whatever the limit
		Letters  int64 `json:"letters"`  // in all
		Bytes    int64 `json:"bytes"`
		Requeued int64 `json:"requeued"`
	}
	if _, err := io.WriteString(w, "{\"letters\":["); err != nil {
		return err
	}
	separator, shown := "\n", int64(0)
	for l, err := range store.List(ctx, filter, limit) {
		if err != nil {
			return err
		}
		shown++
		out := letter{
			ID: l.ID, Device: l.Device, MessageID: l.MessageID, Timestamp: l.Timestamp,
			AcceptedAt: l.AcceptedAt.UTC(), DiedAt: l.DiedAt.UTC(), Topic: l.Topic, Bytes: l.Bytes,
			Reason: l.Reason, Excerpt: l.Excerpt, Attempts: l.Attempts, Deaths: l.Deaths, Traceparent: l.Traceparent,
		}
		if l.Status != 0 {
			out.Status = &l.Status
		}
		if !l.RequeuedAt.IsZero() {
			requeued := l.RequeuedAt.UTC()
			out.RequeuedAt = &requeued
		}
		line, err := output.JSON(out)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s%s", separator, line); err != nil {
			return err
		}
		separator = ",\n"
	}
	matching, err := store.Count(ctx, filter)
	if err != nil {
		return err
	}
	t, err := store.Totals(ctx)
	if err != nil {
		return err
	}
	line, err := output.JSON(totals{max(matching, shown), t.Letters, t.Bytes, t.Requeued})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\n],\"totals\":%s}\n", line)
	return err
}

// printLetterRoom prints the footer of the list: the room that the letters take.
func printLetterRoom(ctx context.Context, configFile string, s *deadletter.Store, w io.Writer) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	r, err := check.ReadLetterRoom(ctx, s, cfg.DeadLetters)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("Room: %d of %d bytes.", r.Used, r.Limit)
	if r.Device != "" {
		text += fmt.Sprintf(" The most of a device: %s, %d of %d bytes.", output.Quoted(r.Device), r.DeviceUsed, r.DeviceLimit)
	}
	_, err = fmt.Fprintln(w, text)
	return err
}
