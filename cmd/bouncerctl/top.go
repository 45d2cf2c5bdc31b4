package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/httpd/api"
)

// slowestShown is how many of the slowest devices there are on the screen.
const slowestShown = 10

type topOptions struct {
	url, tokenFile, caFile string
	interval               time.Duration
	count                  int
}

func newTop(configFile *string) *cobra.Command {
	o := topOptions{interval: time.Second}
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch verdicts, throughput and the slowest devices",
		Long: `Watch what the gateway does: publishes by verdict, deliveries, what waits for the
backend, and the devices whose messages wait longest, from the HTTP listener
([http] listen in bouncer.toml). FAILED counts the requests that failed since the
backend last took or refused a message of the device. On a terminal the screen is
redrawn every second until Ctrl-C; elsewhere a line is printed. To see all
devices that have messages waiting: "bouncerctl queue".

The backend is "failing" where requests of the slowest devices fail, "down" where
those of eight devices have, and "refusing" where it refuses every message, for a
wrong token or path: no message is given up then, and one at a time is tried.
"Dead" counts the messages that were given up since the journal was made, including
those that were requeued or dropped.`,
		Example: `  bouncerctl top
  bouncerctl top --count 1 | tee -a gateway.log`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case o.interval < 100*time.Millisecond || o.interval > time.Hour:
				return usage(c, "--interval %s is not 100ms to 1h", o.interval)
			case o.count < 0:
				return usage(c, "--count %d is negative", o.count)
			case o.url == "" && (o.tokenFile != "" || o.caFile != ""):
				return usage(c, "--token-file and --ca-file are for another listener; name it with --url")
			}
			source, err := o.source(*configFile, c.InOrStdin())
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			f, ok := c.OutOrStdout().(*os.File)
			return o.run(ctx, source, c.OutOrStdout(), ok && term.IsTerminal(int(f.Fd())))
		},
	}
	c.Flags().Var((*span)(&o.interval), "interval", "the time between two requests")
	c.Flags().IntVar(&o.count, "count", 0, "end after this `number` of requests that show a change; 0: until Ctrl-C")
	c.Flags().StringVar(&o.url, "url", "", "the listener's `URL`, https://HOST:PORT (default: as bouncer.toml says)")
	c.Flags().StringVar(&o.tokenFile, "token-file", "", "with --url: the `file` with the bearer token")
	c.Flags().StringVar(&o.caFile, "ca-file", "", "with --url: the `file` with the CAs to trust, instead of the system's")
	return c
}

// figures are the metrics by name, with the value of their one label, if they have any, behind a blank.
type figures struct {
	at      time.Time
	values  map[string]float64
	slowest []api.Device
	missing error // why there are none of those; nil: there are
}

// read asks for the figures.
func (l *listener) read(ctx context.Context) (*figures, error) {
	body, err := l.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.url, err)
	}
	f := &figures{at: time.Now(), values: make(map[string]float64)}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			f.add(name, m)
		}
	}
	return f, nil
}

func (f *figures) add(name string, m *dto.Metric) {
	for _, label := range m.GetLabel() {
		name += " " + output.Printable(label.GetValue())
	}
	switch {
	case m.Counter != nil:
		f.values[name] = m.Counter.GetValue()
	case m.Gauge != nil:
		f.values[name] = m.Gauge.GetValue()
	case m.Histogram != nil:
		f.values[name+" count"] = float64(m.Histogram.GetSampleCount())
		f.values[name+" sum"] = m.Histogram.GetSampleSum()
	}
}

// run looks until ctx ends or count is reached.
func (o *topOptions) run(ctx context.Context, l *listener, w io.Writer, redraw bool) error {
	before, err := l.read(ctx)
	if err != nil {
		return fmt.Errorf("the request to the gateway's HTTP listener failed: %w", err)
	}
	ticker := time.NewTicker(o.interval)
	defer ticker.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now, err := l.read(ctx)
		if err == nil {
			now.slowest, now.missing = l.slowest(ctx, slowestShown)
		}
		var text string
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			text = fmt.Sprintf("%s no answer: %v\n", time.Now().UTC().Format(time.RFC3339), err)
		default:
			c := change{before, now}
			text = c.line()
			if redraw {
				text = c.screen()
			}
			before = now
		}
		if redraw {
			text = "\x1b[H\x1b[J" + text
		}
		if _, err := io.WriteString(w, text); err != nil {
			if errors.Is(err, syscall.EPIPE) {
				return nil
			}
			return err
		}
		if n == o.count {
			return nil
		}
	}
}

// A change is what happened between two looks.
type change struct{ before, now *figures }

// rate is by how much a counter has grown, a second. A broker that was restarted counts from 0 again.
func (c change) rate(name string) float64 {
	grown := c.now.values[name] - c.before.values[name]
	if grown < 0 {
		grown = c.now.values[name]
	}
	return grown / c.now.at.Sub(c.before.at).Seconds()
}

func (c change) gauge(name string) float64 { return c.now.values["bouncer_"+name] }

const verdicts = "bouncer_publishes_total "

// verdict is the rate and the total of one.
type verdict struct {
	name        string
	rate, total float64
}

// verdicts returns those that have occurred: the frequent ones first.
func (c change) verdicts() (all []verdict, accepted, refused float64) {
	for name, total := range c.now.values {
		v, ok := strings.CutPrefix(name, verdicts)
		if !ok || total == 0 {
			continue
		}
		rate := c.rate(name)
		all = append(all, verdict{v, rate, total})
		if v == "accepted" || v == "redelivered" {
			accepted += rate
		} else {
			refused += rate
		}
	}
	slices.SortFunc(all, func(a, b verdict) int {
		return cmp.Or(cmp.Compare(b.rate, a.rate), cmp.Compare(b.total, a.total), cmp.Compare(a.name, b.name))
	})
	return all, accepted, refused
}

// latency is the mean time of the deliveries between the looks.
func (c change) latency() string {
	n, sum := c.rate("bouncer_delivery_seconds count"), c.rate("bouncer_delivery_seconds sum")
	if n == 0 {
		return "-"
	}
	return time.Duration(sum / n * 1e9).Round(10 * time.Microsecond).String()
}

func (c change) line() string {
	all, accepted, refused := c.verdicts()
	var b strings.Builder
	fmt.Fprintf(&b, "%s accepted=%.1f/s refused=%.1f/s delivered=%.1f/s latency=%s pending=%.0f dead=%.0f backend=%s",
		c.now.at.UTC().Format(time.RFC3339), accepted, refused, c.rate("bouncer_messages_delivered_total"), c.latency(),
		c.gauge("messages_pending"), c.gauge("messages_dead_total"), c.backend())
	for _, v := range all {
		if v.name != "accepted" && v.rate > 0 {
			fmt.Fprintf(&b, " %s=%.1f/s", v.name, v.rate)
		}
	}
	// Only the slowest: a line is for a log.
	switch {
	case c.now.missing != nil:
		fmt.Fprintf(&b, " slowest=%q", "not known: "+c.now.missing.Error())
	case len(c.now.slowest) > 0:
		d := &c.now.slowest[0]
		fmt.Fprintf(&b, " slowest=%s", output.Quoted(d.ID))
		if d.OldestSeconds != nil {
			fmt.Fprintf(&b, " oldest=%.1fs", *d.OldestSeconds)
		}
	}
	return b.String() + "\n"
}

func (c change) backend() string {
	switch {
	case c.gauge("deliveries_suspended") != 0:
		return "suspended"
	case c.gauge("backend_refusing") != 0:
		return "refusing"
	case c.gauge("backend_down") != 0:
		return "down"
	case slices.ContainsFunc(c.now.slowest, func(d api.Device) bool { return d.Failures > 0 }):
		return "failing"
	}
	return "up"
}

func (c change) screen() string {
	all, accepted, refused := c.verdicts()
	var b strings.Builder
	fmt.Fprintf(&b, "mosquitto-bouncer   %s   %.0f devices\n\n", c.now.at.Format(time.TimeOnly), c.gauge("registry_devices"))
	fmt.Fprintf(&b, "accepted   %9.1f/s     refused  %9.1f/s\n", accepted, refused)
	fmt.Fprintf(&b, "delivered  %9.1f/s     retries  %9.1f/s     in %s\n", c.rate("bouncer_messages_delivered_total"),
		c.rate("bouncer_request_retries_total"), c.latency())
	fmt.Fprintf(&b, "pending    %9.0f       devices  %9.0f       in flight %.0f\n", c.gauge("messages_pending"), c.gauge("lanes"), c.gauge("requests_in_flight"))
	fmt.Fprintf(&b, "dead       %9.0f       backend  %9s\n\n", c.gauge("messages_dead_total"), c.backend())
	fmt.Fprintf(&b, "%-20s %12s %14s\n", "VERDICT", "A SECOND", "SINCE START")
	for _, v := range all {
		fmt.Fprintf(&b, "%-20s %12.1f %14.0f\n", v.name, v.rate, v.total)
	}
	c.writeSlowest(&b)
	return b.String()
}

func (c change) writeSlowest(b *strings.Builder) {
	if c.now.missing != nil {
		fmt.Fprintf(b, "\nSlowest devices: not known: %v\n", c.now.missing)
		return
	}
	fmt.Fprintf(b, "\n%-32s %10s %13s %8s  %s\n", "SLOWEST DEVICE", "PENDING", "OLDEST", "FAILED", "STATE")
	for i := range c.now.slowest {
		d := &c.now.slowest[i]
		state := "waiting"
		switch {
		case d.Suspended:
			state = "suspended"
		case !d.Registered:
			state = "removed"
		case d.Failures > 0:
			state = "failing"
		}
		id := output.Quoted(d.ID)
		if len(id) > 32 {
			id = id[:29] + "..."
		}
		fmt.Fprintf(b, "%-32s %10d %13s %8d  %s\n", id, d.Pending, oldest(d), d.Failures, state)
	}
}
