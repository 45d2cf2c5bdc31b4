package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/registry"
)

type listOptions struct {
	json, csv bool
	disabled  bool
	expiring  time.Duration // -1: not asked for
}

func newDeviceList(configFile *string) *cobra.Command {
	o := listOptions{expiring: -1}
	c := &cobra.Command{
		Use:   "list",
		Short: "List the registered devices",
		Long: `List the registered devices in the order of their ids, without their secrets.
A row whose id is not text is not a device: it comes last, with its id as an SQL
literal, for example X'6131', which "bouncerctl device remove" accepts.

--disabled and --expiring filter the list; with both, a device must match both. The
expiry is known only for certificates that bouncerctl made.`,
		Example: `  bouncerctl device list
  bouncerctl device list --expiring 30d --csv
  bouncerctl device list --json | jq -r '.[] | select(.disabled) | .id'`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.json && o.csv {
				return usage(c, "--json and --csv exclude each other")
			}
			return withStore(*configFile, func(s *registry.Store) error {
				w := bufio.NewWriterSize(c.OutOrStdout(), 64<<10)
				if err := o.print(c.Context(), s, w); err != nil {
					return err
				}
				return w.Flush()
			})
		},
	}
	c.Flags().BoolVar(&o.json, "json", false, "print a JSON array, a device a line")
	c.Flags().BoolVar(&o.csv, "csv", false, "print comma-separated values with a header (RFC 4180)")
	c.Flags().BoolVar(&o.disabled, "disabled", false, "only devices that are disabled")
	c.Flags().Var((*span)(&o.expiring), "expiring", "only devices whose certificate has expired or expires within this time, such as 30d")
	c.Flag("expiring").DefValue = ""
	return c
}

// matches tells whether a device is to be listed.
func (o *listOptions) matches(e *registry.Entry, now time.Time) bool {
	if o.disabled && !e.Disabled {
		return false
	}
	return o.expiring < 0 || !e.CertificateExpires.IsZero() && e.CertificateExpires.Before(now.Add(o.expiring))
}

func (o *listOptions) print(ctx context.Context, store *registry.Store, w io.Writer) error {
	var p printer = &tablePrinter{w: tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)}
	switch {
	case o.json:
		p = &jsonPrinter{w: w}
	case o.csv:
		p = &csvPrinter{w: csv.NewWriter(w)}
	}
	now := time.Now()
	if err := p.begin(); err != nil {
		return err
	}
	for entry, err := range store.List(ctx) {
		if err != nil {
			return err
		}
		if !o.matches(&entry, now) {
			continue
		}
		if err := p.print(&entry); err != nil {
			return err
		}
	}
	return p.end()
}

// A printer prints one device at a time: there may be a million.
type printer interface {
	begin() error
	print(*registry.Entry) error
	end() error
}

type tablePrinter struct{ w *tabwriter.Writer }

func (p *tablePrinter) begin() error {
	_, err := fmt.Fprintln(p.w, "ID\tREGISTERED\tSTATE\tCERTIFICATE UNTIL")
	return err
}

func (p *tablePrinter) print(e *registry.Entry) error {
	id, created, state, until := e.ID, "-", "enabled", "-"
	if e.IDType != "" {
		state = "invalid id (" + e.IDType + ")"
	} else if !deviceid.Valid(id) {
		id, state = fmt.Sprintf("%q", id), "invalid id"
	} else if e.Disabled {
		state = "disabled"
	}
	if !e.CreatedAt.IsZero() {
		created = e.CreatedAt.UTC().Format(time.RFC3339)
	}
	if !e.CertificateExpires.IsZero() {
		until = e.CertificateExpires.UTC().Format(time.DateOnly)
	}
	_, err := fmt.Fprintf(p.w, "%s\t%s\t%s\t%s\n", id, created, state, until)
	return err
}

func (p *tablePrinter) end() error { return p.w.Flush() }

// A deviceJSON is a device as --json shows it. Times are null where they are not known.
type deviceJSON struct {
	ID                 string     `json:"id"`
	IDType             string     `json:"id_type,omitempty"` // see registry.Entry
	CreatedAt          *time.Time `json:"created_at"`
	Disabled           bool       `json:"disabled"`
	SecretSince        *time.Time `json:"secret_since"`
	OldSecrets         int        `json:"old_secrets"`
	PublicKeys         []keyJSON  `json:"public_keys,omitempty"` // newest first
	CertificateExpires *time.Time `json:"certificate_expires"`
	Pins               []string   `json:"pinned,omitempty"`
}

// A keyJSON is a public key as --json shows it.
type keyJSON struct {
	Algorithm   string     `json:"algorithm"`
	Fingerprint string     `json:"fingerprint"`
	Since       *time.Time `json:"since"`
	Ends        *time.Time `json:"ends"` // null: it is the newest
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func newDeviceJSON(e *registry.Entry) deviceJSON {
	d := deviceJSON{ID: e.ID, IDType: e.IDType, CreatedAt: known(e.CreatedAt), Disabled: e.Disabled, SecretSince: known(e.SecretSince),
		OldSecrets: len(e.OldSecrets), CertificateExpires: known(e.CertificateExpires)}
	for _, k := range e.Keys {
		d.PublicKeys = append(d.PublicKeys, keyJSON{string(k.Key.Algorithm()), k.Key.Fingerprint().String(), known(k.Since), known(k.Ends)})
	}
	for _, pin := range e.Pins {
		d.Pins = append(d.Pins, pin.String())
	}
	return d
}

type jsonPrinter struct {
	w    io.Writer
	some bool
}

func (p *jsonPrinter) begin() error { return nil }

func (p *jsonPrinter) print(e *registry.Entry) error {
	line, err := output.JSON(newDeviceJSON(e))
	if err != nil {
		return err
	}
	separator := ","
	if !p.some {
		separator, p.some = "[", true
	}
	_, err = fmt.Fprintf(p.w, "%s\n%s", separator, line)
	return err
}

func (p *jsonPrinter) end() error {
	text := "\n]"
	if !p.some {
		text = "[]"
	}
	_, err := fmt.Fprintln(p.w, text)
	return err
}

type csvPrinter struct{ w *csv.Writer }

func (p *csvPrinter) begin() error {
	return p.w.Write([]string{"id", "created_at", "disabled", "secret_since", "old_secrets", "certificate_expires", "pinned"})
}

func (p *csvPrinter) print(e *registry.Entry) error {
	when := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	return p.w.Write([]string{cell(e), when(e.CreatedAt), strconv.FormatBool(e.Disabled), when(e.SecretSince),
		strconv.Itoa(len(e.OldSecrets)), when(e.CertificateExpires), strconv.FormatBool(len(e.Pins) > 0)})
}

// cell is an id as a spreadsheet takes it for text: what is no id, as another program may have registered, is quoted as in
// Go. Neither a terminal nor a spreadsheet obeys it then.
func cell(e *registry.Entry) string {
	if e.IDType == "" && deviceid.Valid(e.ID) {
		return e.ID
	}
	return strconv.Quote(e.ID)
}

func (p *csvPrinter) end() error {
	p.w.Flush()
	return p.w.Error()
}
