package plugin

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/registry"
)

// change changes the gateway's registry as bouncerctl does.
func (g *aGateway) change(do func(context.Context, *registry.Store) error) {
	g.t.Helper()
	store, err := registry.OpenStore(filepath.Join(filepath.Dir(g.file), "devices.db"))
	if err != nil {
		g.t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	if err := do(g.t.Context(), store); err != nil {
		g.t.Fatal(err)
	}
}

// until ticks until a condition is met.
func (g *aGateway) until(what string, met func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		g.Tick()
		if met() {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("not within 10 s: %s; log:\n%s", what, strings.Join(g.host.lines, "\n"))
		}
	}
}

func TestRevokedDevicesAreDisconnected(t *testing.T) {
	g := startGateway(t, "")
	for id, revoke := range map[string]func(context.Context, *registry.Store) error{
		"sensor_001": func(ctx context.Context, s *registry.Store) error { return s.SetDisabled(ctx, "sensor_001", true) },
		"sensor_002": func(ctx context.Context, s *registry.Store) error { return s.Remove(ctx, "sensor_002") },
	} {
		if g.send(g.fresh(id)) != gate.Route {
			t.Fatal(g.host.last())
		}
		g.host.kicked = nil
		g.change(revoke)
		g.until("disconnected", func() bool { return slices.Equal(g.host.kicked, []string{"user " + id}) })
		if g.send(g.fresh(id)) != gate.Refuse {
			t.Errorf("%s still publishes", id)
		}
	}
	g.host.kicked = nil
	g.change(func(ctx context.Context, s *registry.Store) error { return s.SetDisabled(ctx, "sensor_001", false) })
	g.until("enabled", func() bool { return g.send(g.fresh("sensor_001")) == gate.Route })
	if len(g.host.kicked) > 0 {
		t.Errorf("disconnected by being enabled: %q", g.host.kicked)
	}
}

// startingBroker calls during in the course of a start.
type startingBroker struct {
	*aBroker
	during func()
}

func (b startingBroker) SetIssuers(all [][]byte) bool {
	b.during()
	return b.aBroker.SetIssuers(all)
}

// TestRemovedDuringTheStart removes a device while a gateway starts. What it retained is verified no longer, also if its id is
// given to another device.
func TestRemovedDuringTheStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	g := startGateway(t, "[audit]\nfile = \""+file+"\"\n")
	kept := g.fresh("sensor_001")
	kept.Retain = true
	if g.send(kept) != gate.Route {
		t.Fatal(g.host.last())
	}
	kept.Identity, kept.ClientID = []byte("subscriber"), []byte("subscriber")
	if d := g.Access(gate.Read, kept); d != gate.NotConcerned {
		t.Fatalf("decision %v", d)
	}
	g.Stop()
	var err error
	g.Gateway, err = Start(g.file, startingBroker{g.host, func() {
		g.change(func(ctx context.Context, s *registry.Store) error { return s.Remove(ctx, "sensor_001") })
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if text, _ := os.ReadFile(file); strings.Contains(string(text), `"change":"removed"`) {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("%s", text)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.until("disconnected", func() bool { return slices.Equal(g.host.kicked, []string{"user sensor_001"}) })
	g.change(func(ctx context.Context, s *registry.Store) error {
		return s.Add(ctx, "sensor_001", registry.Secret("other"))
	})
	g.until("registered", func() bool { return g.registry.Lookup([]byte("sensor_001")) != nil })
	if d := g.Access(gate.Read, kept); d != gate.Deny {
		t.Errorf("decision %v", d)
	}
}

func TestPinnedCertificates(t *testing.T) {
	g := startGateway(t, "")
	g.change(func(ctx context.Context, s *registry.Store) error {
		return s.Pin(ctx, "sensor_001", registry.Fingerprint{1})
	})
	g.until("pinned", func() bool { return g.registry.Lookup([]byte("sensor_001")).Pinned() })
	response := by(g.fresh("sensor_001"), "sensor_001", "device/sensor_001/response")
	for _, test := range []struct {
		fingerprint [32]byte // zero: the client has no certificate
		send        gate.Disposition
		read        gate.Decision
	}{
		{[32]byte{}, gate.Refuse, gate.Deny}, {[32]byte{2}, gate.Refuse, gate.Deny}, {[32]byte{1}, gate.Route, gate.AllowCertified},
	} {
		g.host.fingerprint = test.fingerprint
		if got := g.send(g.fresh("sensor_001")); got != test.send {
			t.Errorf("%x: disposition %d", test.fingerprint, got)
		}
		if test.send == gate.Refuse && !strings.Contains(g.host.last(), "reason=no_tls_identity") {
			t.Error(g.host.last())
		}
		for _, action := range []gate.Action{gate.Subscribe, gate.Read} {
			if got := g.Access(action, response); got != test.read {
				t.Errorf("%x: action %d: %d", test.fingerprint, action, got)
			}
		}
	}
	g.host.fingerprint = [32]byte{3}
	if g.send(g.fresh("sensor_002")) != gate.Route {
		t.Errorf("a device without pins: %s", g.host.last())
	}
}

// TestAuditOfCommands: who sent a command to which device, and its result, without the body.
func TestAuditOfCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	address, settings := httpSettings(t)
	g := startGateway(t, settings+"[audit]\nfile = \""+file+"\"\n")
	ctx, cancel := context.WithCancel(t.Context())
	loop := make(chan struct{})
	go func() { defer close(loop); g.answer(ctx) }()
	post := func(device, body string, want int) (id string) {
		t.Helper()
		r, err := http.NewRequest(http.MethodPost, "http://"+address+"/v1/devices/"+device+"/commands?ttl=2s&wait=10s", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer token")
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", "k"+body)
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		var c struct{ ID string }
		if err := json.NewDecoder(a.Body).Decode(&c); err != nil || a.StatusCode != want {
			t.Fatalf("%d %v, want %d", a.StatusCode, err, want)
		}
		return c.ID
	}
	id := post("sensor_001", `"open sesame"`, 200)
	if again := post("sensor_001", `"open sesame"`, 200); again != id { // which is the same command
		t.Error(again)
	}
	post("none", `"open sesame"`, 404)
	lost := post("sensor_002", `"unanswered"`, 200)
	cancel()
	<-loop
	g.Stop()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(content)) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if r.Event != audit.Command {
			continue
		}
		if r.Time.IsZero() || strings.HasPrefix(r.Actor, "127.0.0.1:") != (r.Change == "created" || r.Change == "refused") {
			t.Errorf("%s", line)
		}
		got = append(got, strings.TrimSpace(strings.Join([]string{r.Device, r.Change, r.MessageID, r.Reason}, " ")))
	}
	want := []string{"sensor_001 created " + id, "sensor_001 sent " + id, "sensor_001 succeeded " + id, "none refused  no_such_device",
		"sensor_002 created " + lost, "sensor_002 sent " + lost, "sensor_002 expired " + lost}
	if !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	for _, secret := range []string{"sesame", "unanswered", "token", `"s"`} {
		if strings.Contains(string(content), secret) {
			t.Errorf("the log has %s: %s", secret, content)
		}
	}
}

func TestAudit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	g := startGateway(t, "[audit]\nfile = \""+file+"\"\n")
	bad := g.fresh("sensor_001")
	bad.Payload = []byte(strings.Replace(string(bad.Payload), `"t":22`, `"t":23`, 1))
	if g.send(bad) != gate.Refuse || g.send(g.fresh("sensor_001")) != gate.Route {
		t.Fatal(g.host.last())
	}
	g.change(func(ctx context.Context, s *registry.Store) error { return s.SetDisabled(ctx, "sensor_001", true) })
	g.until("disconnected", func() bool { return len(g.host.kicked) > 0 })
	g.Stop()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []audit.Record
	for line := range strings.Lines(string(content)) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		r.Time = time.Time{}
		got = append(got, r)
	}
	if len(got) != 4 {
		t.Fatalf("%s", content)
	}
	if r := got[1]; r.Event != audit.Denied || r.Device != "sensor_001" || r.Reason != "bad_signature" || r.Topic != "device/sensor_001/data" || len(r.MessageID) != 36 {
		t.Errorf("%+v", r)
	}
	if r := got[2]; r.Event != audit.Registry || r.Device != "sensor_001" || r.Change != "disabled" {
		t.Errorf("%+v", r)
	}
	if got[0].Event != audit.Start || got[3].Event != audit.Stop || strings.Contains(string(content), "t\\\":2") {
		t.Errorf("%s", content)
	}
}
