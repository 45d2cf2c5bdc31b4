package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/fleetstate"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/suspension"
)

func newQueue(configFile *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "queue",
		Short: "Show what waits for the backend, by device",
		Long: `Show how many accepted messages of each device wait for the backend, the longest
queue first, and how long the oldest has waited. The journal is only read; the
broker may run or not. Its changes during the command may be missing. With [fleet]
it also shows why nothing goes to NATS, if that is so.`,
		Example: `  bouncerctl queue
  bouncerctl queue --json | jq -r '.devices[] | select(.messages > 1000) | .device'`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(*configFile)
			if err != nil {
				return err
			}
			q, err := readQueue(filepath.Join(cfg.StateDir, journal.DirName))
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("there is no journal in %s; the broker makes it when it starts, so correct state_dir in bouncer.toml if it has run", cfg.StateDir)
			}
			if errors.Is(err, fs.ErrPermission) {
				return notPermitted(err)
			}
			if err != nil {
				return err
			}
			if q.suspended, err = suspension.List(filepath.Join(cfg.StateDir, suspension.DirName)); err != nil {
				return err
			}
			if len(cfg.Fleet.Servers) > 0 { // else a gateway that was killed may have left the file
				if q.fleet, err = fleetstate.Load(cfg.StateDir); err != nil {
					return err
				}
			}
			if asJSON {
				return q.printJSON(c.OutOrStdout())
			}
			return q.print(c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	c.AddCommand(newQueueResume(configFile))
	return c
}

// queue is what waits for the backend.
type queue struct {
	devices  []queuedDevice // the longest queue first
	messages int64
	bytes    int64 // of payloads
	journal  journal.Inspection

	suspended []suspension.Suspension
	fleet     *fleetstate.State // why nothing goes to NATS; nil: it does, or is not to
}

// queuedDevice is what waits of one device.
type queuedDevice struct {
	Device   string     `json:"device"`
	Messages int64      `json:"messages"`
	Bytes    int64      `json:"bytes"`  // of payloads
	Oldest   *time.Time `json:"oldest"` // accepted; null if unknown
}

func readQueue(dir string) (*queue, error) {
	var q queue
	devices := make(map[string]*queuedDevice)
	var err error
	q.journal, err = journal.Inspect(dir, func(_ journal.Position, a *journal.Accepted, o journal.Outcome) {
		if o != journal.Pending {
			return
		}
		d := devices[a.Device]
		if d == nil {
			d = &queuedDevice{Device: a.Device}
			devices[a.Device] = d
		}
		d.Messages++
		d.Bytes += int64(len(a.Payload))
		q.messages++
		q.bytes += int64(len(a.Payload))
		if at := a.AcceptedAt; !at.IsZero() && (d.Oldest == nil || at.Before(*d.Oldest)) {
			d.Oldest = &at
		}
	})
	if err != nil {
		return nil, err
	}
	for d := range maps.Values(devices) {
		q.devices = append(q.devices, *d)
	}
	slices.SortFunc(q.devices, func(a, b queuedDevice) int {
		return cmp.Or(cmp.Compare(b.Messages, a.Messages), cmp.Compare(a.Device, b.Device))
	})
	return &q, nil
}

func (q *queue) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "DEVICE\tMESSAGES\tBYTES\tOLDEST")
	for _, d := range q.devices {
		oldest := "-"
		if d.Oldest != nil {
			oldest = output.Instant(*d.Oldest)
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", output.Quoted(d.Device), d.Messages, d.Bytes, oldest)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nIn all: %s of %s, %s of payload. The journal takes %s.\n", output.Counted(q.messages, "message"),
		output.Counted(int64(len(q.devices)), "device"), output.Counted(q.bytes, "byte"), output.Counted(q.journal.Bytes, "byte"))
	if len(q.suspended) > 0 {
		fmt.Fprintf(w, "Suspended, because the backend answered 410 Gone: %s.\nTo continue: bouncerctl queue resume%s\n",
			suspended(q.suspended), strings.TrimRight(" "+q.suspended[0].Device, " "))
	}
	if q.fleet != nil {
		fmt.Fprintf(w, "Nothing goes to NATS since %s: %s.\n", output.Instant(q.fleet.Since), output.Printable(q.fleet.Why))
	}
	if q.journal.Damaged > 0 || q.journal.Unreadable > 0 {
		_, err := fmt.Fprintf(w, "Damaged, and not counted: %s, %s.\n",
			output.Counted(int64(q.journal.Damaged), "message"), output.Counted(int64(q.journal.Unreadable), "segment"))
		return err
	}
	return nil
}

// printJSON prints one device a line.
func (q *queue) printJSON(w io.Writer) error {
	type totals struct {
		Messages     int64 `json:"messages"`
		Bytes        int64 `json:"bytes"`
		Devices      int   `json:"devices"`
		JournalBytes int64 `json:"journal_bytes"`
		Damaged      int   `json:"damaged_messages"`
		Unreadable   int   `json:"unreadable_segments"`
		Suspended    int   `json:"suspended_urls"`

		Fleet *fleetstate.State `json:"fleet,omitempty"` // why nothing goes to NATS
	}
	gone := make([]string, 0, len(q.suspended)) // "": all devices
	for _, s := range q.suspended {
		gone = append(gone, s.Device)
	}
	names, err := output.JSON(gone)
	if err != nil {
		return err
	}
	fmt.Fprint(w, "{\"devices\":[")
	separator := "\n"
	for _, d := range q.devices {
		line, err := output.JSON(d)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s%s", separator, line); err != nil {
			return err
		}
		separator = ",\n"
	}
	line, err := output.JSON(totals{q.messages, q.bytes, len(q.devices), q.journal.Bytes, q.journal.Damaged, q.journal.Unreadable, len(q.suspended), q.fleet})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\n],\"suspended\":%s,\"totals\":%s}\n", names, line)
	return err
}
