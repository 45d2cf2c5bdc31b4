package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/registry"
)

// defaultLimit is how many lines are printed of what may be many.
const defaultLimit = 100

// deathReasons are what a letter can have died of.
var deathReasons = []string{forward.ReasonRefused, forward.ReasonExpired, forward.ReasonUnreadable, forward.ReasonUnreadableAnswer, forward.ReasonPanic}

// maxPreview is how much of a payload show prints, in bytes.
const maxPreview = 1024

func newDead(configFile *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "dead",
		Short: "List dead letters, requeue and drop them",
		Long: `Manage the dead letters: messages that were accepted and that the backend will
not have, or that could not be delivered in time. They are kept until they are
requeued or dropped, whether the broker runs or not.`,
		Example: `  bouncerctl dead list --since 24h
  bouncerctl dead requeue --device sensor_001`,
	}
	needsCommand(c)
	c.AddCommand(newDeadList(configFile), newDeadShow(configFile), newDeadRequeue(configFile), newDeadDrop(configFile))
	return c
}

func newDeadList(configFile *string) *cobra.Command {
	var filter deadletter.Filter
	var since span
	var limit int
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the dead letters",
		Long: `List the dead letters, the last to die first, and how many there are.

A letter is "dead", or "requeued" while the broker has yet to take it back.`,
		Example: `  bouncerctl dead list
  bouncerctl dead list --device sensor_001 --reason refused --since 24h
  bouncerctl dead list --limit 0 --json | jq '.letters[] | select(.status == 422) | .id'`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("device") && !registry.ValidID(filter.Device) {
				return noDeviceID(c, filter.Device)
			}
			if c.Flags().Changed("reason") && !slices.Contains(deathReasons, filter.Reason) {
				return usage(c, "--reason %q is none of %s", filter.Reason, strings.Join(deathReasons, ", "))
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
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", l.ID, instant(l.DiedAt), quoted(l.Device), quoted(l.MessageID),
			quoted(l.Reason), status(l.Status), l.Attempts, l.Bytes, state(l))
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
		shown, counted(max(matching, shown), "letter"), counted(totals.Letters, "letter"), totals.Requeued, counted(totals.Bytes, "byte"))
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
		line, err := terminalJSON(out)
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
	line, err := terminalJSON(totals{max(matching, shown), t.Letters, t.Bytes, t.Requeued})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\n],\"totals\":%s}\n", line)
	return err
}

func newDeadShow(configFile *string) *cobra.Command {
	var payload bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show a dead letter",
		Long: `Show a dead letter: the message, and what the backend said to it.

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
		line("requeued", instant(l.RequeuedAt))
	}
	line("device", quoted(l.Device))
	line("message id", quoted(l.MessageID))
	line("timestamp", fmt.Sprintf("%d (%s)", l.Timestamp, instant(time.Unix(l.Timestamp, 0))))
	line("topic", quoted(l.Topic))
	if l.Traceparent != "" {
		line("traceparent", quoted(l.Traceparent))
	}
	line("accepted", instant(l.AcceptedAt))
	line("died", instant(l.DiedAt))
	line("reason", quoted(l.Reason))
	line("status", status(l.Status))
	if l.Excerpt != "" {
		line("response", quoted(l.Excerpt))
	}
	line("attempts", strconv.Itoa(l.Attempts))
	line("deaths", strconv.Itoa(l.Deaths))
	line("bytes", strconv.FormatInt(l.Bytes, 10))
	preview, more := l.Payload, ""
	if len(preview) > maxPreview {
		preview, more = preview[:maxPreview], " ... (--payload prints all)"
	}
	line("payload", printable(string(preview))+more)
	return table.Flush()
}

// A selection is the letters that a command is to change.
type selection struct {
	device string
	all    bool
}

// flags adds those that select.
func (s *selection) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.device, "device", "", "all letters of the device `ID`")
	c.Flags().BoolVar(&s.all, "all", false, "all letters")
}

// filter wants exactly one way to select letters.
func (s *selection) filter(c *cobra.Command, args []string) (deadletter.Filter, error) {
	var ways int
	for _, used := range []bool{len(args) > 0, c.Flags().Changed("device"), s.all} {
		if used {
			ways++
		}
	}
	switch {
	case ways == 0:
		return deadletter.Filter{}, usage(c, "no letter given; name their numbers, --device ID or --all")
	case ways > 1:
		return deadletter.Filter{}, usage(c, "numbers, --device and --all exclude each other")
	case s.all:
		return deadletter.Filter{}, nil
	case len(args) > 0:
		ids, err := letterIDs(c, args)
		return deadletter.Filter{IDs: ids}, err
	case !registry.ValidID(s.device):
		return deadletter.Filter{}, noDeviceID(c, s.device)
	}
	return deadletter.Filter{Device: s.device}, nil
}

func newDeadRequeue(configFile *string) *cobra.Command {
	var s selection
	c := &cobra.Command{
		Use:   "requeue {ID... | --device ID | --all}",
		Short: "Have dead letters delivered again",
		Long: `Have dead letters delivered again: the broker takes them back within seconds, or
once it runs, each behind what its device has queued, and with the idempotency
key it had. What the backend refuses once more is a dead letter again.

ID is a letter's number in the list. Of several, all are requeued or none.`,
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

func newDeadDrop(configFile *string) *cobra.Command {
	var s selection
	var yes bool
	c := &cobra.Command{
		Use:   "drop {ID... | --device ID | --all --yes}",
		Short: "Remove dead letters for good",
		Long: `Remove dead letters for good: the messages are lost. Letters that were requeued
and not yet taken back are dropped as well.

ID is a letter's number in the list. Of several, all are dropped or none.`,
		Example: `  bouncerctl dead drop 17 18
  bouncerctl dead drop --device sensor_001`,
		RunE: func(c *cobra.Command, args []string) error {
			filter, err := s.filter(c, args)
			if err != nil {
				return err
			}
			if s.all && !yes {
				return usage(c, "--all drops every dead letter for good; add --yes to do that")
			}
			return changeLetters(*configFile, c.OutOrStdout(), "Dropped", func(store *deadletter.Store) (int64, error) {
				return store.Drop(c.Context(), filter)
			})
		},
	}
	s.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "with --all: yes, all of them")
	return c
}

// changeLetters runs change and says how many letters it changed, also if it then failed.
func changeLetters(configFile string, w io.Writer, done string, change func(*deadletter.Store) (int64, error)) error {
	return withLetters(configFile, func(s *deadletter.Store) error {
		n, err := change(s)
		if err == nil || n > 0 {
			_, printErr := fmt.Fprintf(w, "%s %s.\n", done, counted(n, "letter"))
			err = errors.Join(err, printErr)
		}
		return letterError(err)
	})
}

// withLetters runs do on the dead letters in the state directory that the configuration names.
func withLetters(configFile string, do func(*deadletter.Store) error) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	store, err := deadletter.OpenExisting(filepath.Join(cfg.StateDir, deadletter.FileName))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there are no dead letters in %s; the broker makes %s when it starts, so correct state_dir in bouncer.toml if it has run",
			cfg.StateDir, deadletter.FileName)
	}
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

// letterIDs reads the numbers of letters, at least one.
func letterIDs(c *cobra.Command, args []string) ([]int64, error) {
	if len(args) == 0 {
		return nil, usage(c, "no letter given")
	}
	ids := make([]int64, len(args))
	for i, arg := range args {
		id, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || id < 1 {
			return nil, usage(c, "%q is not the number of a letter", arg)
		}
		ids[i] = id
	}
	return ids, nil
}

func noDeviceID(c *cobra.Command, id string) error {
	return usage(c, "%q is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -)", id)
}

// letterError says what to do about a letter that does not exist.
func letterError(err error) error {
	if errors.Is(err, deadletter.ErrNotFound) {
		return fmt.Errorf("%w; see bouncerctl dead list", err)
	}
	return err
}

func state(l deadletter.Letter) string {
	if l.RequeuedAt.IsZero() {
		return "dead"
	}
	return "requeued"
}

// status is the status of a response, if there was one.
func status(code int) string {
	if code == 0 {
		return "-"
	}
	return strconv.Itoa(code)
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }
