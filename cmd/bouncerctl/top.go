package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
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

	"mosquitto-bouncer/plugin/config"
)

// maxMetricsBytes bounds an answer of the listener.
const maxMetricsBytes = 4 << 20

type topOptions struct {
	url, tokenFile, caFile string
	interval               time.Duration
	count                  int
}

func newTop(configFile *string) *cobra.Command {
	o := topOptions{interval: time.Second}
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch verdicts, throughput and what waits for the backend",
		Long: `Watch what the gateway does: publishes by verdict, deliveries, and what waits for
the backend, as the HTTP listener tells ([http] listen in bouncer.toml). On a
terminal the screen is redrawn every second until Ctrl-C; elsewhere a line is
printed. To see which devices have messages waiting: "bouncerctl queue".`,
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
	c.Flags().Var((*span)(&o.interval), "interval", "the time between two looks")
	c.Flags().IntVar(&o.count, "count", 0, "end after so `many` looks at what has changed; 0: with Ctrl-C")
	c.Flags().StringVar(&o.url, "url", "", "the listener's `URL`, https://HOST:PORT (default: as\nbouncer.toml says)")
	c.Flags().StringVar(&o.tokenFile, "token-file", "", "with --url: the `file` with the bearer token")
	c.Flags().StringVar(&o.caFile, "ca-file", "", "with --url: the `file` with the CAs to trust, instead of the\nsystem's")
	return c
}

// A noListener is a bouncer.toml without [http] listen.
type noListener struct{ file string }

func (e *noListener) Error() string {
	return e.file + ": there is no HTTP listener; set [http] listen and token_file, and restart the broker"
}

// A listener is where figures come from.
type listener struct {
	url    string // without a path
	token  string
	client *http.Client
}

func (o *topOptions) source(configFile string, stdin io.Reader) (*listener, error) {
	l := &listener{url: strings.TrimSuffix(o.url, "/")}
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	l.client = &http.Client{Transport: transport, Timeout: 5 * time.Second}
	if o.url != "" {
		if o.tokenFile != "" {
			content, err := readFrom("--token-file", o.tokenFile, stdin)
			if err != nil {
				return nil, err
			}
			l.token = strings.TrimSpace(string(content))
		}
		if o.caFile != "" {
			content, err := os.ReadFile(o.caFile)
			if err != nil {
				return nil, err
			}
			transport.TLSClientConfig.RootCAs = x509.NewCertPool()
			if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(content) {
				return nil, fmt.Errorf("--ca-file: %s has no certificate in PEM", o.caFile)
			}
		}
		return l, nil
	}
	cfg, err := config.Load(configFile)
	if err != nil {
		return nil, err
	}
	if cfg.HTTP.Listen == "" {
		return nil, &noListener{configFile}
	}
	l.token = string(cfg.HTTP.Token)
	l.url = "http://" + reachable(cfg.HTTP.Listen)
	if cfg.HTTP.TLS != nil {
		// It is this very certificate that is expected, whatever name the listener is reached by here.
		l.url = strings.Replace(l.url, "http", "https", 1)
		leaf, err := x509.ParseCertificate(cfg.HTTP.TLS.Certificates[0].Certificate[0])
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		transport.TLSClientConfig.RootCAs.AddCert(leaf)
		switch {
		case len(leaf.DNSNames) > 0:
			transport.TLSClientConfig.ServerName = leaf.DNSNames[0]
		case len(leaf.IPAddresses) > 0:
			transport.TLSClientConfig.ServerName = leaf.IPAddresses[0].String()
		}
	}
	return l, nil
}

// reachable is where to connect to for what is listened on.
func reachable(listen string) string {
	for _, every := range []string{"0.0.0.0:", "[::]:", ":"} {
		if port, ok := strings.CutPrefix(listen, every); ok {
			return "localhost:" + port
		}
	}
	return listen
}

// figures are the metrics by name, with the value of their one label, if they have any, behind a blank.
type figures struct {
	at     time.Time
	values map[string]float64
}

// get asks with the token. The caller closes the body.
func (l *listener) get(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url+path, nil)
	if err != nil {
		return nil, err
	}
	if l.token != "" {
		request.Header.Set("Authorization", "Bearer "+l.token)
	}
	return l.client.Do(request)
}

func (l *listener) read(ctx context.Context) (*figures, error) {
	response, err := l.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxMetricsBytes))
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("%s: the token is not the listener's (401); restart the broker if token_file has changed", l.url)
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: answered %s", l.url, response.Status)
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
		name += " " + label.GetValue()
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
		return fmt.Errorf("the gateway's HTTP listener does not tell: %w", err)
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
	return b.String() + "\n"
}

func (c change) backend() string {
	if c.gauge("backend_down") != 0 {
		return "down"
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
	return b.String()
}
