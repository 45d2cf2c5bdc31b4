package harness

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/test/harness/broker"
)

// HealthSays waits until /healthz answers with the status, and with want in its detail.
func (g *Gateway) HealthSays(status int, want string) {
	g.Helper()
	for deadline := time.Now().Add(Patience); ; time.Sleep(20 * time.Millisecond) {
		s := g.Ask("GET", "/healthz", "")
		if s.Status == status && strings.Contains(s.Detail, want) {
			return
		}
		if time.Now().After(deadline) {
			g.Fatalf("health: %d %s, want %d and %q in it", s.Status, s.Text, status, want)
		}
	}
}

// An Answer is an answer of the HTTP listener.
type Answer struct {
	Status int
	Header http.Header
	Text   []byte

	ID, URL, State, Reason, Detail string
	Result, Command                json.RawMessage
	Sent, Finished                 *time.Time
	Repeated                       bool
}

// Ask sends a request with the token, unless the header names another. Safe for concurrent use.
func (g *Gateway) Ask(method, path, body string, header ...string) Answer {
	g.Helper()
	s, err := Ask(g.Limit(), http.DefaultClient, "http://"+g.Broker.HTTPAddr(), method, path, body, header...)
	if err != nil {
		g.Errorf("%s %s: %v", method, path, err)
	}
	return s
}

// CommandState waits until a command is in a state.
func (g *Gateway) CommandState(id, want string) Answer {
	g.Helper()
	var s Answer
	for deadline := time.Now().Add(Patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s = g.Ask("GET", "/v1/commands/"+id, ""); s.State == want {
			return s
		}
	}
	g.Errorf("command %s is %q, not %q", id, s.State, want)
	return s
}

// Metric reads one value of /metrics: name is the series with its labels.
func (g *Gateway) Metric(name string) float64 {
	g.Helper()
	text := g.Ask("GET", "/metrics", "").Text
	for line := range strings.Lines(string(text)) {
		if number, found := strings.CutPrefix(line, name+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			g.Must(err)
			return value
		}
	}
	g.Fatalf("no metric %s", name)
	return 0
}

// Ask is Gateway.Ask with another client or address, and returns the error.
func Ask(ctx context.Context, client *http.Client, base, method, path, body string, header ...string) (s Answer, err error) {
	r, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
	if err != nil {
		return s, err
	}
	r.Header.Set("Authorization", "Bearer "+broker.HTTPToken)
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := client.Do(r)
	if err != nil {
		return s, err
	}
	defer answer.Body.Close()
	s.Status, s.Header = answer.StatusCode, answer.Header
	if s.Text, err = io.ReadAll(answer.Body); err != nil {
		return s, err
	}
	if strings.Contains(answer.Header.Get("Content-Type"), "json") {
		var fields struct {
			ID, URL, State, Reason, Detail string
			Result, Command                json.RawMessage
			Sent, Finished                 *time.Time
			Repeated                       bool
		}
		err = json.Unmarshal(s.Text, &fields)
		s.ID, s.URL, s.State, s.Reason, s.Detail, s.Repeated = fields.ID, fields.URL, fields.State, fields.Reason, fields.Detail, fields.Repeated
		s.Result, s.Command, s.Sent, s.Finished = fields.Result, fields.Command, fields.Sent, fields.Finished
	}
	return s, err
}
