package plugin

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/audit"
)

// TestUnauthorizedIsAudited: requests without the valid token are recorded and counted, and the wrong token is not in any
// record.
func TestUnauthorizedIsAudited(t *testing.T) {
	address, settings := httpSettings(t)
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	g := startGateway(t, settings+"[audit]\nfile = \""+file+"\"\n")
	for i := range 100 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer sesame")
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != 401 && (a.StatusCode != 429 || i < 20) {
			t.Fatalf("request %d: %s", i, a.Status)
		}
	}
	refused, limited := g.figure(`http_unauthorized_total{status="401"}`), g.figure(`http_unauthorized_total{status="429"}`)
	if refused < 20 || limited == 0 || refused+limited != 100 {
		t.Errorf("counted %v and %v", refused, limited)
	}
	g.Tick()
	if n := g.host.count("HTTP requests without the valid token refused"); n != 1 {
		t.Errorf("%d lines: %q", n, g.host.lines)
	}
	g.Stop()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	recorded := 0
	for line := range strings.Lines(string(content)) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if r.Event == audit.Unauthorized {
			recorded++
			if !strings.HasPrefix(r.Actor, "127.0.0.1:") {
				t.Errorf("%s", line)
			}
		}
	}
	if recorded < 50 || recorded > 100 {
		t.Errorf("%d records: %s", recorded, content)
	}
	if all := string(content) + strings.Join(g.host.lines, "\n"); strings.Contains(all, "sesame") {
		t.Errorf("the wrong token is recorded: %s", all)
	}
}

// TestShortToken: a token that a later version refuses causes a warning at the start and at SIGHUP, which does not quote it.
func TestShortToken(t *testing.T) {
	_, settings := httpSettings(t)
	g := startGateway(t, settings+"[publish]\n")
	warned := func() int { return g.host.count("http.token_file: the token is shorter than 32 characters") }
	if warned() != 1 {
		t.Errorf("at the start: %q", g.host.lines)
	}
	g.reload("")
	g.until("warned of again", func() bool { return warned() == 2 })
}
