package plugin

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/order"
	"mosquitto-bouncer/plugin/registry"
)

// elsewhere returns what a client with a certificate of its name may do with topics that are not the gateway's.
func (g *aGateway) elsewhere(name string) (subscribe, read, write gate.Decision) {
	p := publish(name, []byte("x"))
	p.Topic, p.Presented, p.CommonName = []byte("site/status"), true, []byte(name)
	subscribe, write = g.Access(gate.Subscribe, p), g.Access(gate.Write, p)
	p.Presented, p.CommonName = false, nil // a delivery does not look at the certificate
	return subscribe, g.Access(gate.Read, p), write
}

func (g *aGateway) expectElsewhere(name string, want gate.Decision) {
	g.t.Helper()
	if s, r, w := g.elsewhere(name); s != want || r != want || w != want {
		g.t.Errorf("%s: subscribe %d, read %d, write %d, want %d; log:\n%s", name, s, r, w, want, strings.Join(g.host.lines, "\n"))
	}
}

// isForeign reports whether a dashboard may not use a client id.
func (g *aGateway) isForeign(id string) bool {
	p := publish("dashboard", nil)
	p.ClientID, p.Topic = []byte(id), []byte("site/status")
	return g.Access(gate.Subscribe, p) == gate.Deny && strings.Contains(g.host.last(), "reason=foreign_client_id")
}

// TestRemovedStaysConfined: a device may be removed while the gateway runs or not, and that may be started again.
func TestRemovedStaysConfined(t *testing.T) {
	g := startGateway(t, "")
	g.expectElsewhere("sensor_001", gate.Deny)
	g.expectElsewhere("stranger", gate.NotConcerned)
	g.change(func(ctx context.Context, s *registry.Store) error { return s.Remove(ctx, "sensor_001") })
	g.until("removed", func() bool { return g.registry.Lookup([]byte("sensor_001")) == nil })
	g.expectElsewhere("sensor_001", gate.Deny)
	g.restart()
	g.expectElsewhere("sensor_001", gate.Deny)
	g.Stop()
	g.change(func(ctx context.Context, s *registry.Store) error { return s.Remove(ctx, "sensor_002") })
	var err error
	if g.Gateway, err = Start(g.file, g.host); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"sensor_001", "sensor_002"} {
		g.expectElsewhere(id, gate.Deny)
		// Another user name with its certificate changes nothing.
		p := publish("dashboard", nil)
		p.Topic, p.Presented, p.CommonName = []byte("#"), true, []byte(id)
		if d := g.Access(gate.Subscribe, p); d != gate.Deny {
			t.Errorf("%s under another name: %d", id, d)
		}
		if !g.isForeign(id) {
			t.Errorf("%s: its client id is free for everyone", id)
		}
	}
	g.expectElsewhere("stranger", gate.NotConcerned)

	dir := filepath.Join(g.dir, order.DirName)
	done := make(chan error, 1)
	go func() {
		done <- order.Give(t.Context(), dir, order.Order{Kind: order.Release, Names: []string{"sensor_001"}, At: time.Now()})
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	g.expectElsewhere("sensor_001", gate.NotConcerned)
	g.expectElsewhere("sensor_002", gate.Deny)
	if g.isForeign("sensor_001") || !g.isForeign("sensor_002") {
		t.Error("released: a client id belongs to its device until it is released")
	}
	g.restart()
	g.expectElsewhere("sensor_001", gate.NotConcerned)
	g.expectElsewhere("sensor_002", gate.Deny)
}

func TestUnknownCertificates(t *testing.T) {
	const deny = "[acl]\nunknown_certificates = \"deny\"\ncertificates = [\"dashboard\", \"sensor_009\"]\n"
	g := startGateway(t, deny)
	// The broker's configuration is not known here, so every name counts as a certificate's.
	if g.host.strangers != gate.StrangersByName {
		t.Fatalf("strangers are recognised by %d", g.host.strangers)
	}
	for name, want := range map[string]gate.Decision{
		"dashboard": gate.NotConcerned, "stranger": gate.Deny, "": gate.Deny, "sensor_001": gate.Deny, "Dashboard": gate.Deny, "dashboard ": gate.Deny,
	} {
		g.expectElsewhere(name, want)
	}
	if g.host.count("reason=forbidden_topic") == 0 || g.host.count("not in [acl] certificates") == 0 {
		t.Errorf("the log does not say why: %s", strings.Join(g.host.lines, "\n"))
	}
	// Being named gives a removed device no rights.
	g.change(func(ctx context.Context, s *registry.Store) error {
		return s.Add(ctx, "sensor_009", registry.Secret("s"))
	})
	g.until("added", func() bool { return g.registry.Lookup([]byte("sensor_009")) != nil })
	g.change(func(ctx context.Context, s *registry.Store) error { return s.Remove(ctx, "sensor_009") })
	g.until("removed", func() bool { return g.registry.Lookup([]byte("sensor_009")) == nil })
	g.expectElsewhere("sensor_009", gate.Deny)

	// Where other clients have no certificates, the certificate counts, and not the user name.
	settings := gateSettings(g.reloading.config, g.broker)
	settings.NamesAreCertificates = false
	g.Configure(settings)
	for _, c := range []struct {
		identity, name string
		presented      bool
		want           gate.Decision
	}{
		{"anyone", "", false, gate.NotConcerned},
		{"", "", false, gate.NotConcerned},
		{"anyone", "dashboard", true, gate.NotConcerned},
		{"dashboard", "stranger", true, gate.Deny},
		{"anyone", "stranger", true, gate.Deny},
		{"anyone", "sensor_002", true, gate.NotConcerned}, // a registered device's certificate: as [acl] others says
		{"", "", true, gate.Deny},
	} {
		p := publish(c.identity, []byte("x"))
		p.Topic, p.Presented, p.CommonName = []byte("site/status"), c.presented, []byte(c.name)
		for _, action := range []gate.Action{gate.Subscribe, gate.Read, gate.Write} {
			if d := g.Access(action, p); d != c.want {
				t.Errorf("action %d of user %q with the certificate %q (%v): %d, want %d", action, c.identity, c.name, c.presented, d, c.want)
			}
		}
	}

	// A reload puts it in force.
	text, err := os.ReadFile(g.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.file, []byte(strings.Replace(string(text), `"deny"`, `"others"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	changes := 0
	g.OnIdentityChange(func() { changes++ })
	g.Reload()
	g.until("reloaded", func() bool { return g.host.count("bouncer.toml was reloaded") > 0 })
	if g.host.strangers != gate.StrangersAny || changes == 0 {
		t.Errorf("strangers are recognised by %d; %d changes", g.host.strangers, changes)
	}
	g.expectElsewhere("stranger", gate.NotConcerned)
}

// Where removed ids may be missing, any unknown certificate may be a removed device's.
func TestRemovedIDsMayBeMissing(t *testing.T) {
	g := startGateway(t, "[acl]\ncertificates = [\"dashboard\"]\n")
	g.Stop()
	path := filepath.Join(g.dir, "device-ids")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-3] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if g.Gateway, err = Start(g.file, g.host); err != nil {
		t.Fatal(err)
	}
	g.expectElsewhere("stranger", gate.Deny)
	g.expectElsewhere("dashboard", gate.NotConcerned)
	if g.host.count("some removed device ids are not remembered") != 1 {
		t.Error(strings.Join(g.host.lines, "\n"))
	}
	if err := order.Give(t.Context(), filepath.Join(g.dir, order.DirName), order.Order{Kind: order.Release, At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	g.Tick()
	g.expectElsewhere("stranger", gate.NotConcerned)
}
