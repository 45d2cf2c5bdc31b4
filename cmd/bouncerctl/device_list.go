package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
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
A row whose id is not text is no device: it comes last, with its id as an SQL
literal, X'6131' for example, by which "bouncerctl device remove" takes it.

--disabled and --expiring choose; with both, those that are both are listed. The
time of a certificate is known of those that bouncerctl made.`,
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
	c.Flags().Var((*span)(&o.expiring), "expiring", "only devices whose certificate expires within this time, or has, such as 30d")
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
	} else if !registry.ValidID(id) {
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
	CertificateExpires *time.Time `json:"certificate_expires"`
	Pins               []string   `json:"pinned,omitempty"`
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
	line, err := terminalJSON(newDeviceJSON(e))
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
	if e.IDType == "" && registry.ValidID(e.ID) {
		return e.ID
	}
	return strconv.Quote(e.ID)
}

func (p *csvPrinter) end() error {
	p.w.Flush()
	return p.w.Error()
}

func newDeviceShow(configFile *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show what is known of a device",
		Long: `Show what the registry knows of a device: its state, its secrets by age, though
never a secret itself, and its certificate; and what the gateway knows: when a
publish was accepted last, how many were accepted and refused since the gateway's
start, and what waits for the backend. The gateway is asked over its HTTP
listener ([http] listen in bouncer.toml); where there is none, or the broker does
not run, the last line says so.`,
		Example: `  bouncerctl device show sensor_001
  bouncerctl device show sensor_001 --json`,
		Args: oneID,
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(*configFile)
			if err != nil {
				return err
			}
			store, err := openStore(cfg, false)
			if err != nil {
				return err
			}
			e, err := store.Get(c.Context(), args[0])
			if err = errors.Join(err, store.Close()); err != nil {
				return deviceError(args[0], err)
			}
			live, missing := askGateway(c.Context(), cfg, e.ID)
			if asJSON {
				return showJSON(c.OutOrStdout(), &e, live, missing)
			}
			return show(c.OutOrStdout(), &e, live, missing, time.Now())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return c
}

// askGateway returns what the gateway knows of a device, or why it is not known.
func askGateway(ctx context.Context, cfg *config.Config, id string) (*liveDevice, error) {
	if !registry.ValidID(id) {
		return nil, errors.New("the gateway knows no device with this id")
	}
	l, err := listenerOf(cfg)
	if err != nil {
		return nil, err
	}
	defer l.client.CloseIdleConnections()
	live, err := l.device(ctx, id)
	if err != nil {
		return nil, err
	}
	return live, nil
}

func show(w io.Writer, e *registry.Entry, live *liveDevice, missing error, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	id, state := e.ID, "enabled"
	if !registry.ValidID(id) {
		id, state = fmt.Sprintf("%q", id), "invalid id"
	} else if e.Disabled {
		state = "disabled"
	}
	line("Device", "%s", id)
	line("State", "%s", state)
	line("Registered", "%s", ago(e.CreatedAt, now))
	rest := "plain text"
	if e.Encrypted {
		rest = "encrypted"
	}
	line("Secret", "since %s; stored as %s", ago(e.SecretSince, now), rest)
	for _, old := range e.OldSecrets {
		line("Old secret", "since %s; ends %s", ago(old.Since, now), ago(old.Ends, now))
	}
	switch {
	case e.CertificateExpires.IsZero():
		line("Certificate", "not known")
	case e.CertificateExpires.Before(now):
		line("Certificate", "expired %s", ago(e.CertificateExpires, now))
	default:
		line("Certificate", "expires %s", ago(e.CertificateExpires, now))
	}
	for _, pin := range e.Pins {
		line("Pinned", "%s", pin)
	}
	if missing != nil {
		line("Gateway", "not known: %v", missing)
		return table.Flush()
	}
	showLive(line, live, now)
	return table.Flush()
}

func showLive(line func(what, format string, args ...any), live *liveDevice, now time.Time) {
	line("Gateway", "since %s", ago(live.Since, now))
	last := "not since then"
	if live.LastAccepted != nil {
		last = ago(*live.LastAccepted, now)
	}
	line("Last accepted", "%s", last)
	line("Accepted", "%d", live.Accepted)
	if live.Redelivered > 0 {
		line("Redelivered", "%d", live.Redelivered)
	}
	refused := "0"
	if len(live.Refused) > 0 {
		var by []string
		total := uint64(0)
		for _, reason := range slices.Sorted(maps.Keys(live.Refused)) {
			by = append(by, fmt.Sprintf("%s %d", printable(reason), live.Refused[reason]))
			total += live.Refused[reason]
		}
		refused = fmt.Sprintf("%d: %s", total, strings.Join(by, ", "))
	}
	line("Refused", "%s", refused)
	pending := fmt.Sprint(live.Pending)
	if live.Pending > 0 {
		pending += fmt.Sprintf(", the oldest for %s", live.oldest())
	}
	if live.Failures > 0 {
		pending += fmt.Sprintf("; %s failed", counted(live.Failures, "request"))
	}
	line("Pending", "%s", pending)
	if live.Suspended {
		line("Delivery", "suspended: the backend answered 410 Gone; bouncerctl queue resume")
	}
}

// ago writes a time with how far it is from now.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := t.Sub(now)
	text := t.UTC().Format(time.RFC3339)
	if d >= 0 {
		return fmt.Sprintf("%s (in %s)", text, roughly(d))
	}
	return fmt.Sprintf("%s (%s ago)", text, roughly(-d))
}

func roughly(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	default:
		return fmt.Sprintf("%d s", d/time.Second)
	}
}

func showJSON(w io.Writer, e *registry.Entry, live *liveDevice, missing error) error {
	type oldSecret struct {
		Since time.Time `json:"since"`
		Ends  time.Time `json:"ends"`
	}
	v := struct {
		deviceJSON
		Encrypted  bool        `json:"encrypted"`
		OldSecrets []oldSecret `json:"old_secrets"`
		Live       *liveDevice `json:"live"` // null: see LiveError
		LiveError  string      `json:"live_error,omitempty"`
	}{deviceJSON: newDeviceJSON(e), Encrypted: e.Encrypted, OldSecrets: []oldSecret{}, Live: live}
	if missing != nil {
		v.LiveError = missing.Error()
	}
	for _, old := range e.OldSecrets {
		v.OldSecrets = append(v.OldSecrets, oldSecret{old.Since.UTC(), old.Ends.UTC()})
	}
	line, err := terminalJSON(v)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, line, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err = b.WriteTo(w)
	return err
}
