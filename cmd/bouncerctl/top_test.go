package main

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"mosquitto-bouncer/plugin/httpd/api"
)

// TestTop: the real program against a listener that counts up.
func TestTop(t *testing.T) {
	var looks atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		if r.URL.Path == "/v1/devices" {
			if r.URL.RawQuery != "order=slowest&limit=10" || looks.Load() > 2 {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprint(w, `{"status":503,"reason":"unavailable","detail":"the broker's thread\n\u001b[2J has not answered"}`)
				return
			}
			fmt.Fprint(w, `{"devices":[{"device_id":"d 1","registered":true,"pending":3,"oldest_pending_seconds":12.34,"failed_requests":2}]}`)
			return
		}
		n := looks.Add(1)
		fmt.Fprintf(w, `# TYPE bouncer_publishes_total counter
bouncer_publishes_total{verdict="accepted"} %d
bouncer_publishes_total{verdict="replay"} %d
bouncer_publishes_total{verdict="`+"\x1b"+`[2J"} %d
bouncer_publishes_total{verdict="stale"} 0
# TYPE bouncer_messages_pending gauge
bouncer_messages_pending 7
# TYPE bouncer_delivery_seconds histogram
bouncer_delivery_seconds_bucket{le="+Inf"} %d
bouncer_delivery_seconds_sum %g
bouncer_delivery_seconds_count %d
`, 1000*n, 10*n, n, n, 0.002*float64(n), n)
	}))
	defer server.Close()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "token"), "token\n")
	writeFile(t, filepath.Join(dir, "wrong"), "x")
	ca := filepath.Join(dir, "ca")
	writeFile(t, ca, string(pemOf(server.Certificate().Raw)))
	args := func(more ...string) []string {
		return append([]string{"top", "--url", server.URL, "--ca-file", ca, "--interval", "100ms"}, more...)
	}
	got := succeed(t, args("--token-file", filepath.Join(dir, "token"), "--count", "2")...)
	line := regexp.MustCompile(`\A(\S+Z accepted=\d+\.\d/s refused=\d+\.\d/s delivered=0\.0/s latency=2ms pending=7 dead=0 backend=(up|failing) replay=\d+\.\d/s "\\x1b\[2J"=\d+\.\d/s slowest=.*\n){2}\z`)
	if !line.MatchString(got) {
		t.Errorf("%s", got)
	}
	lines := strings.Split(got, "\n")
	if !strings.HasSuffix(lines[0], ` slowest="d 1" oldest=12.3s`) {
		t.Errorf("%s", lines[0])
	}
	// What is missing is told on the same line, which a listener cannot break.
	if !strings.Contains(lines[1], ` slowest="not known: `+server.URL+`/v1/devices?order=slowest&limit=10: answered 503 Service Unavailable: `) ||
		!strings.HasSuffix(lines[1], `has not answered\""`) || strings.Contains(lines[1], "\x1b") {
		t.Errorf("%q", lines[1])
	}
	for want, bad := range map[string][]string{
		"the token is not the listener's (401)":    args("--token-file", filepath.Join(dir, "wrong")),
		"a token is required (401); name its file": args(),
		"connection refused; is the broker":        {"top", "--url", "http://127.0.0.1:1"},
		"certificate":                              {"top", "--url", server.URL},
	} {
		if got := bouncerctl(t, "", bad...); got.code != 1 || !strings.Contains(got.stderr, want) || strings.Contains(got.stderr, "token\n") {
			t.Errorf("%q: %+v", want, got)
		}
	}
	fail(t, 2, "--interval 1ms is not 100ms to 1h; see bouncerctl top --help", "top", "--interval", "1ms")
	fail(t, 2, "--token-file and --ca-file are for another listener; name it with --url; see bouncerctl top --help", "top", "--token-file", "x")
	site := newDir(t)
	fail(t, 1, filepath.Join(site, "bouncer.toml")+": there is no HTTP listener; set [http] listen and token_file, and restart the broker",
		"top", "--config", filepath.Join(site, "bouncer.toml"))
}

// TestTopScreen: what a terminal gets fits it.
func TestTopScreen(t *testing.T) {
	then := figures{values: map[string]float64{verdicts + "accepted": 1, verdicts + "replay": 5}}
	now := figures{at: then.at.Add(2e9), values: map[string]float64{verdicts + "accepted": 1_000_001, verdicts + "replay": 3,
		verdicts + "stale": 0, "bouncer_backend_down": 1, "bouncer_lanes": 12}}
	age, old := 3.21, 36000.0
	now.slowest = []api.Device{{ID: strings.Repeat("x", 64), Registered: true, Pending: 1e9, OldestSeconds: &old, Failures: 65535, Suspended: true},
		{ID: "sensor_001", Registered: true, Pending: 2, OldestSeconds: &age, Failures: 1}, {ID: "gone", Pending: 1}}
	got := change{&then, &now}.screen()
	for _, want := range []string{"accepted    500000.0/s", "backend       down", "accepted                 500000.0        1000001", "replay                        1.5              3",
		"sensor_001                                2         3.2 s        1  failing", "gone                                      1             -        0  removed",
		"xxx... 1000000000      10 hours    65535  suspended"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	for gauge, want := range map[string]string{"bouncer_deliveries_suspended": "suspended", "bouncer_lanes": "failing"} {
		if got := (change{&then, &figures{values: map[string]float64{gauge: 1}, slowest: now.slowest}}).backend(); got != want {
			t.Errorf("the backend is %s, want %s", got, want)
		}
	}
	if strings.Contains(got, "stale") {
		t.Error("a verdict that has not occurred is shown")
	}
	for line := range strings.Lines(got) {
		if len(line) > 81 {
			t.Errorf("wide: %q", line)
		}
	}
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
