package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/subscription"
	"mosquitto-bouncer/plugin/suspension"
)

// suspend stops the delivery of a device's messages, so that they stay in the backlog.
func (g *aGateway) suspend(device string) {
	g.t.Helper()
	dir := filepath.Join(g.dir, suspension.DirName)
	if err := errors.Join(os.MkdirAll(dir, 0o750), os.WriteFile(filepath.Join(dir, "device="+device), nil, 0o640)); err != nil {
		g.t.Fatal(err)
	}
	g.restart()
}

// asked runs question as an HTTP goroutine would, while this one is the broker's thread and does round.
func asked[T any](t testing.TB, round func(), question func() (T, error)) T {
	t.Helper()
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		v, err := question()
		done <- answer{v, err}
	}()
	for {
		select {
		case a := <-done:
			if a.err != nil {
				t.Fatal(a.err)
			}
			return a.v
		case <-time.After(time.Millisecond):
			round()
		}
	}
}

// askDevice asks for one device.
func (g *aGateway) askDevice(id string, round func()) httpd.Device {
	g.t.Helper()
	return asked(g.t, round, func() (httpd.Device, error) { return g.service.Device(g.t.Context(), id) })
}

func TestWhatIsKnownOfADevice(t *testing.T) {
	g := startGateway(t, "")
	g.suspend("sensor_001")
	tick := func() { g.Tick() }
	d := g.askDevice("sensor_001", tick)
	if !d.Registered || d.Disabled || !d.LastAccepted.IsZero() || d.Accepted != 0 || len(d.Refused) != 0 || d.Pending != 0 || !d.OldestSince.IsZero() || !d.Suspended {
		t.Errorf("before it speaks: %+v", d)
	}

	begin := time.Now()
	first := g.fresh("sensor_001")
	for _, p := range []*gate.Publish{first, first, g.fresh("sensor_001")} { // the second is a replay
		g.send(p)
	}
	tampered := g.fresh("sensor_001")
	tampered.Payload = []byte(strings.Replace(string(tampered.Payload), `"t":22`, `"t":23`, 1))
	g.send(tampered)
	g.Disconnected(&gate.Publish{Connection: 1, Identity: first.Identity, ClientID: first.ClientID}, subscription.MayStay)
	again := *first
	again.Connection = 3
	g.Tick()
	if o := g.send(&again); o != gate.Swallow {
		t.Fatalf("%d %s", o, g.host.last())
	}
	g.Access(gate.Subscribe, by(first, "sensor_001", "others/topic"))
	// Another's topic: the refusal counts for the publisher.
	g.send(by(first, "sensor_002", ""))

	want := map[string]uint64{"replay": 1, "bad_signature": 1, "forbidden_topic": 1}
	for what, round := range map[string]func(){
		"tick":    tick,
		"publish": func() { g.Access(gate.Write, by(first, "somebody", "elsewhere")) }, // of a broker that never ticks
	} {
		d = g.askDevice("sensor_001", round)
		if d.Accepted != 2 || d.Redelivered != 1 || !maps.Equal(d.Refused, want) || d.Pending != 2 || d.Failures != 0 {
			t.Errorf("%s: %+v", what, d)
		}
		for _, at := range []time.Time{d.LastAccepted, d.OldestSince} {
			if at.Before(begin.Truncate(time.Millisecond)) || at.After(time.Now()) {
				t.Errorf("%s: %+v", what, d)
			}
		}
		if d.OldestSince.After(d.LastAccepted) || !d.Since.Equal(g.service.health.started) {
			t.Errorf("%s: %+v", what, d)
		}
	}
	if d := g.askDevice("sensor_002", tick); d.Accepted != 0 || !maps.Equal(d.Refused, map[string]uint64{"topic_mismatch": 1}) || d.Suspended {
		t.Errorf("%+v", d)
	}

	list := asked(t, tick, func() ([]httpd.Device, error) { return g.service.Slowest(t.Context(), 10) })
	if len(list) != 1 || list[0].ID != "sensor_001" || list[0].Pending != 2 || list[0].Accepted != 2 || !list[0].Suspended {
		t.Errorf("%+v", list)
	}
	g.change(func(ctx context.Context, s *registry.Store) error { return s.Remove(ctx, "sensor_001") })
	g.until("removed", func() bool { return g.registry.Lookup([]byte("sensor_001")) == nil })
	_, err := g.service.Device(t.Context(), "sensor_001")
	if e, ok := errors.AsType[*httpd.Error](err); !ok || e.Status != 404 {
		t.Errorf("%v", err)
	}
	list = asked(t, tick, func() ([]httpd.Device, error) { return g.service.Slowest(t.Context(), 10) })
	if len(list) != 1 || list[0].Registered {
		t.Errorf("a removed device's messages still wait: %+v", list)
	}
}

// TestDeviceOverHTTP: what clients see.
func TestDeviceOverHTTP(t *testing.T) {
	g, address := startHTTP(t)
	if g.send(g.fresh("sensor_001")) != gate.Route {
		t.Fatal(g.host.last())
	}
	text := asked(t, g.Tick, func() (string, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v1/devices/sensor_001", nil)
		if err != nil {
			return "", err
		}
		r.Header.Set("Authorization", "Bearer token")
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			return "", err
		}
		defer a.Body.Close()
		text, err := io.ReadAll(a.Body)
		return string(text), err
	})
	var d struct {
		ID           string     `json:"device_id"`
		LastAccepted *time.Time `json:"last_accepted"`
		Accepted     int
		Refused      map[string]int
	}
	if err := json.Unmarshal([]byte(text), &d); err != nil || d.ID != "sensor_001" || d.Accepted != 1 || d.LastAccepted == nil || d.Refused == nil {
		t.Errorf("%v %s", err, text)
	}
}
