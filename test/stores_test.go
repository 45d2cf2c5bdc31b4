package test

import (
	"os"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/test/broker"
)

// healthSays waits until /healthz answers with the status, and with want in its detail.
func (g *gate) healthSays(status int, want string) {
	g.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		s := g.ask("GET", "/healthz", "")
		if s.Status == status && strings.Contains(s.Detail, want) {
			return
		}
		if time.Now().After(deadline) {
			g.Fatalf("health: %d %s, want %d and %q in it", s.Status, s.Text, status, want)
		}
	}
}

// TestStateDirAway: what could not be kept is not acknowledged, /healthz says so, and when the same files are back it
// goes on by itself.
func TestStateDirAway(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.accept(c, 1, c.Sign("1"))
	state := g.broker.Path("state")
	began := time.Now()
	g.no(os.Rename(state, state+".away"))
	g.healthSays(503, "was removed or renamed")
	if took := time.Since(began); took > 3*time.Second { // it takes less than one where nothing else is busy
		t.Errorf("noticed after %v", took)
	}
	g.refuse(c, c.DataTopic(), 1, c.Sign("2"), "overloaded")
	g.no(os.Rename(state+".away", state))
	g.healthSays(200, "")
	g.accept(c, 1, c.Sign("3"))
}

// TestHealthOfStores: 200 means that every store can be written now.
func TestHealthOfStores(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	g.healthSays(200, "")
	commands := g.broker.Path("state/commands.db")
	g.no(os.Rename(commands, commands+".away"))
	g.healthSays(503, "commands.db cannot be written")
	if s := g.ask("POST", "/v1/devices/sensor_001/commands", "1"); s.Status < 500 {
		t.Errorf("a command that no restart would find is taken: %d %s", s.Status, s.Text)
	}
	g.no(os.Rename(commands+".away", commands))
	g.healthSays(200, "")
	dead := g.broker.Path("state/dead.db")
	g.no(os.Rename(dead, dead+".away"))
	g.no(os.Mkdir(dead, 0o700))
	g.healthSays(503, "dead.db cannot be written")
	g.no(os.Remove(dead))
	g.no(os.Rename(dead+".away", dead))
	g.healthSays(200, "")
}
