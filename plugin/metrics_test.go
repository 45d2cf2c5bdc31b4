package plugin

import (
	"flag"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/metrics"
)

var updateMetrics = flag.Bool("update-metrics", false, "write testdata/metrics.txt")

// TestSeriesStay: a gateway with everything switched on has all series with the names, types and labels that dashboards and
// alerts use.
func TestSeriesStay(t *testing.T) {
	g, address := startHTTP(t)
	if g.send(g.fresh("sensor_001")) != gate.Route {
		t.Fatal(g.host.last())
	}
	g.until("delivered", func() bool { return len(g.host.published) > 0 && len(g.outbox.Responses()) > 0 })
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer token")
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.Header.Get("Content-Type"), "text/plain; version=0.0.4; charset=utf-8"; got != want {
		t.Errorf("Content-Type %q, want %q", got, want)
	}
	var series strings.Builder
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "# HELP"):
		case strings.HasPrefix(line, "# TYPE"):
			series.WriteString(line)
		default:
			series.WriteString(line[:strings.LastIndexByte(line, ' ')] + "\n")
		}
	}
	const file = "testdata/metrics.txt"
	if *updateMetrics {
		if err := os.WriteFile(file, []byte(series.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if series.String() != string(want) {
		t.Errorf("the series are\n%s\nwant\n%s", series.String(), want)
	}
}

// figure returns what /metrics shows of one series.
func (g *aGateway) figure(name string) float64 { return figure(g.t, g.service.metrics, name) }

// figure returns what a set of metrics shows of one series.
func figure(t testing.TB, set *metrics.Set, name string) float64 {
	t.Helper()
	var text strings.Builder
	if _, err := set.Write(&text); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if v, found := strings.CutPrefix(line, "bouncer_"+name+" "); found {
			n, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s is missing in\n%s", name, text.String())
	return 0
}
