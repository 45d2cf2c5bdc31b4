package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/httpd/api"
	"mosquitto-bouncer/plugin/registry"
)

func newDeviceShow(configFile *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show a device's state, secrets, certificate and backlog",
		Long: `Show what the registry has about a device: its state, the age of its secrets, but
never a secret itself, or its public keys with their fingerprints, which are the
SHA-256 of the key in DER, and its certificate. The gateway adds when it last accepted
a publish, how many it accepted and refused since its start, and the backlog. It
is asked over its HTTP listener ([http] listen in bouncer.toml). If there is none,
or the broker does not run, the last line says so.`,
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
func askGateway(ctx context.Context, cfg *config.Config, id string) (*api.Device, error) {
	if !deviceid.Valid(id) {
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

func show(w io.Writer, e *registry.Entry, live *api.Device, missing error, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	id, state := e.ID, "enabled"
	if !deviceid.Valid(id) {
		id, state = fmt.Sprintf("%q", id), "invalid id"
	} else if e.Disabled {
		state = "disabled"
	}
	line("Device", "%s", id)
	line("State", "%s", state)
	line("Registered", "%s", output.Ago(e.CreatedAt, now))
	showCredentials(line, e, now)
	switch {
	case e.CertificateExpires.IsZero():
		line("Certificate", "not known")
	case e.CertificateExpires.Before(now):
		line("Certificate", "expired %s", output.Ago(e.CertificateExpires, now))
	default:
		line("Certificate", "expires %s", output.Ago(e.CertificateExpires, now))
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

func showCredentials(line func(what, format string, args ...any), e *registry.Entry, now time.Time) {
	for _, k := range e.Keys {
		what, ends, of := "Public key", "", ""
		if k.OfCertificate {
			of = " of the certificate"
		}
		if !k.Ends.IsZero() {
			what, ends = "Old public key", "; ends "+output.Ago(k.Ends, now)
		}
		line(what, "%s%s, since %s%s", k.Key.Algorithm(), of, output.Ago(k.Since, now), ends)
		line("Fingerprint", "%s", k.Key.Fingerprint())
	}
	if len(e.Keys) > 0 {
		return
	}
	rest := "plain text"
	if e.Encrypted {
		rest = "encrypted"
	}
	line("Secret", "since %s; stored as %s", output.Ago(e.SecretSince, now), rest)
	for _, old := range e.OldSecrets {
		line("Old secret", "since %s; ends %s", output.Ago(old.Since, now), output.Ago(old.Ends, now))
	}
}

func showLive(line func(what, format string, args ...any), live *api.Device, now time.Time) {
	if live.Since != nil {
		line("Gateway", "since %s", output.Ago(*live.Since, now))
	}
	last := "not since then"
	if live.LastAccepted != nil {
		last = output.Ago(*live.LastAccepted, now)
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
			by = append(by, fmt.Sprintf("%s %d", output.Printable(reason), live.Refused[reason]))
			total += live.Refused[reason]
		}
		refused = fmt.Sprintf("%d: %s", total, strings.Join(by, ", "))
	}
	line("Refused", "%s", refused)
	pending := fmt.Sprint(live.Pending)
	if live.Pending > 0 {
		pending += fmt.Sprintf(", the oldest for %s", oldest(live))
	}
	if live.Failures > 0 {
		pending += fmt.Sprintf("; %s failed", output.Counted(live.Failures, "request"))
	}
	line("Pending", "%s", pending)
	if live.Suspended {
		line("Delivery", "suspended: the backend answered 410 Gone; bouncerctl queue resume")
	}
}

func showJSON(w io.Writer, e *registry.Entry, live *api.Device, missing error) error {
	type oldSecret struct {
		Since time.Time `json:"since"`
		Ends  time.Time `json:"ends"`
	}
	v := struct {
		deviceJSON
		Encrypted  bool        `json:"encrypted"`
		OldSecrets []oldSecret `json:"old_secrets"`
		Live       *api.Device `json:"live"` // null: see LiveError
		LiveError  string      `json:"live_error,omitempty"`
	}{deviceJSON: newDeviceJSON(e), Encrypted: e.Encrypted, OldSecrets: []oldSecret{}, Live: live}
	if missing != nil {
		v.LiveError = missing.Error()
	}
	for _, old := range e.OldSecrets {
		v.OldSecrets = append(v.OldSecrets, oldSecret{old.Since.UTC(), old.Ends.UTC()})
	}
	line, err := output.JSON(v)
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
