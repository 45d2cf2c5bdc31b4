package plugin

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/outbox"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/retained"
	"mosquitto-bouncer/plugin/standing"
	"mosquitto-bouncer/plugin/subscription"
)

// tickUntil ticks until a condition is met.
func (g *aGateway) tickUntil(what string, met func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatalf("waited for %s; the log says:\n%s", what, strings.Join(g.host.lines, "\n"))
		}
		g.Tick()
	}
}

// TestRestartRemembers: after a restart an accepted message is a replay, except from the client that may have lost the
// acknowledgement.
func TestRestartRemembers(t *testing.T) {
	g := startGateway(t, "")
	const again = gate.Swallow
	for qos := byte(1); qos <= 2; qos++ {
		p := g.fresh("sensor_001")
		p.QoS = qos
		if o := g.send(p); o != firstDisposition(qos) {
			t.Fatalf("disposition %d: %s", o, g.host.last())
		}
		g.restart()
		other := *p
		other.ClientID = []byte("another client")
		if o := g.send(&other); o != gate.Refuse || !strings.Contains(g.host.last(), "reason=replay") {
			t.Errorf("another client: disposition %d: %s", o, g.host.last())
		}
		if o := g.send(p); o != again {
			t.Errorf("QoS %d: disposition %d: %s", qos, o, g.host.last())
		}
		if o := g.send(p); o != gate.Refuse || !strings.Contains(g.host.last(), "reason=replay") {
			t.Errorf("QoS %d, on the same connection: disposition %d: %s", qos, o, g.host.last())
		}
		g.Disconnected(p, subscription.MayStay)
		g.Tick()
		if o := g.send(p); o != again {
			t.Errorf("QoS %d, once more over another connection: disposition %d: %s", qos, o, g.host.last())
		}
		g.restart()
		at0 := *p
		at0.QoS = 0
		if o := g.send(&at0); o != gate.Refuse {
			t.Errorf("at QoS 0: disposition %d", o)
		}
	}
	g.tickUntil("delivery", func() bool { return g.Stats().Accounts == outbox.Accounts{Accepted: 2, Delivered: 2} })
	if n := g.backend.Load(); n != 2 {
		t.Errorf("the backend got %d requests", n)
	}
}

// TestJournalFull: what cannot be stored is refused and not remembered.
func TestJournalFull(t *testing.T) {
	g := startGateway(t, "timeout = \"1m\"\n[publish]\nmax_bytes = 700000\n[journal]\nmax_bytes = \"1MiB\"\n")
	large := func(device, id string) *gate.Publish {
		p := publish(device, sign(t, "s", device, time.Now().Unix(), id, `"`+strings.Repeat("x", 600000)+`"`))
		p.QoS, p.Connection = 1, 1
		return p
	}
	if o := g.send(large("sensor_001", uuid.NewString())); o != gate.Route {
		t.Fatalf("disposition %d: %s", o, g.host.last())
	}
	second := large("sensor_002", uuid.NewString())
	if o := g.send(second); o != gate.Refuse || !strings.Contains(g.host.last(), "reason=overloaded") || !strings.Contains(g.host.last(), "journal: full") {
		t.Fatalf("disposition %d: %s", o, g.host.last())
	}
	if o := g.send(second); o != gate.Refuse || !strings.Contains(g.host.last(), "reason=overloaded") {
		t.Errorf("a message that was refused is remembered: %s", g.host.last())
	}
	if s := g.Stats(); s.Accounts.Accepted != 1 || s.Journal.Accepted != 1 || s.Journal.Refused != 2 {
		t.Errorf("%+v", s)
	}
	for _, device := range []string{"sensor_001", "sensor_002"} {
		if o := g.send(g.fresh(device)); o != gate.Route {
			t.Errorf("a small message of %s: disposition %d: %s", device, o, g.host.last())
		}
	}
}

// TestFatalAfterRefusingOverARestart: a status that is made fatal no longer counts as the backend's state.
func TestFatalAfterRefusingOverARestart(t *testing.T) {
	for settings, refusing := range map[string]bool{"": true, "fatal_statuses = [401]": false} {
		g := startGateway(t, settings)
		g.Stop()
		if err := standing.Save(g.dir, g.reloading.config.Backend.URL, standing.State{Refusing: true, Status: 401, Since: time.Now()}); err != nil {
			t.Fatal(err)
		}
		var err error
		if g.Gateway, err = Start(g.file, g.host); err != nil {
			t.Fatal(err)
		}
		if got := g.Stats().Forward.Refusing; got != refusing {
			t.Errorf("with %q: refusing %v", settings, got)
		}
	}
}

// TestSecondGatewayWritesNothing: a gateway that is refused because another one has its state directory has written nothing
// there.
func TestSecondGatewayWritesNothing(t *testing.T) {
	g := startGateway(t, "")
	g.change(func(ctx context.Context, s *registry.Store) error {
		return s.Add(ctx, "sensor_003", registry.Secret("s"))
	})
	g.until("the new device is noted", func() bool {
		ids, err := os.ReadFile(filepath.Join(g.dir, former.FileName))
		return err == nil && strings.Contains(string(ids), "sensor_003")
	})
	state := func() map[string]string {
		files := make(map[string]string)
		for _, name := range []string{former.FileName, retained.FileName, command.FileName} {
			if info, err := os.Stat(filepath.Join(g.dir, name)); err == nil {
				files[name] = fmt.Sprint(info.Size(), info.ModTime())
			}
		}
		return files
	}
	before := state()
	if _, err := Start(g.file, new(aBroker)); err == nil || !strings.Contains(err.Error(), "another broker runs with the same state_dir") {
		t.Fatalf("error %v", err)
	}
	if after := state(); len(before) == 0 || !maps.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
}
