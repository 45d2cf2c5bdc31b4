package plugin

import (
	"os"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/gate"
)

// reload replaces what is below [publish] in bouncer.toml, and does what SIGHUP does.
func (g *aGateway) reload(publish string) {
	g.t.Helper()
	content, err := os.ReadFile(g.file)
	if err != nil {
		g.t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(content), "[publish]")
	if err := os.WriteFile(g.file, []byte(head+"[publish]\n"+publish), 0o600); err != nil {
		g.t.Fatal(err)
	}
	g.Reload()
}

func TestReload(t *testing.T) {
	g := startGateway(t, "[publish]\n")
	send := func() gate.Disposition { return g.send(g.fresh("sensor_001")) }
	twice := func() [2]gate.Disposition { return [2]gate.Disposition{send(), send()} }
	if twice() != [2]gate.Disposition{gate.Route, gate.Route} {
		t.Fatal(g.host.last())
	}
	g.reload("rate = 0.001\nburst = 1\nmax_bytes = 1000\n")
	g.until("reloaded", func() bool { return g.host.count("bouncer.toml was reloaded") == 1 })
	if twice() != [2]gate.Disposition{gate.Route, gate.Refuse} || g.host.count("rate_limited") != 1 {
		t.Errorf("the limit is not in force: %q", g.host.lines)
	}
	// With a bad file, all of the last good one stays in force.
	g.reload("rate = 0\nmax_bytes = 10\n")
	g.until("refused", func() bool { return g.host.count("bouncer.toml was not reloaded") == 1 })
	if g.host.count(g.file+":7: publish.max_bytes: 10 bytes is out of range") != 1 || !strings.Contains(g.reloading.why(), "publish.max_bytes") {
		t.Errorf("%q, %s", g.host.lines, g.reloading.why())
	}
	if send() != gate.Refuse {
		t.Error("a part of a bad file is in force")
	}
	// Without the limit, and with what needs a restart.
	g.reload("max_bytes = 300\ntopics = [\"device/+/data\", \"other/+\"]\ntolerance = \"1m\"\n")
	g.until("reloaded", func() bool { return g.host.count("need a restart") == 1 })
	if !strings.Contains(strings.Join(g.host.lines, "\n"), `settings=publish.topics,publish.tolerance`) || g.reloading.why() != "" {
		t.Errorf("%q, %s", g.host.lines, g.reloading.why())
	}
	if twice() != [2]gate.Disposition{gate.Route, gate.Route} {
		t.Error(g.host.last())
	}
	p := g.fresh("sensor_001")
	p.Payload = append(p.Payload, []byte(strings.Repeat(" ", 300))...)
	if g.send(p) != gate.Refuse || g.host.count("too_large") != 1 {
		t.Error(g.host.last())
	}
	old := publish("sensor_001", sign(t, "s", "sensor_001", time.Now().Unix()-120, "550e8400-e29b-41d4-a716-446655440000", `1`))
	if g.send(old) != gate.Route {
		t.Errorf("the tolerance has changed: %s", g.host.last())
	}
}

func TestReloadOthers(t *testing.T) {
	g := startGateway(t, "[publish]\n[acl]\nothers = \"defer\"\n")
	g.reload("[acl]\nothers = \"allow\"\n")
	g.until("reloaded", func() bool { return g.host.count("bouncer.toml was reloaded") == 1 })
	if g.host.others != OthersAllow {
		t.Errorf("%v", g.host.others)
	}
}
