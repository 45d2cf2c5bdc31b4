package plugin

import (
	"testing"
	"time"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/outbox"
)

// TestAnswersAreInTheAccounts: a device's answer to a command counts as accepted and delivered like any other message, before
// and after a restart.
func TestAnswersAreInTheAccounts(t *testing.T) {
	_, settings := httpSettings(t)
	g := startGateway(t, settings)
	made, _, err := g.service.commands.Create(t.Context(), command.Request{Device: "sensor_001", Body: []byte("1"), TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	g.service.commands.Send(made)
	g.until("sent", func() bool { return len(g.host.published) > 0 })
	g.obey(g.host.published[0])
	want := outbox.Accounts{Accepted: 1, Delivered: 1}
	g.until("the answer is stored", func() bool { return g.Stats().Journal.Pending == 0 })
	if a := g.Stats().Accounts; a != want {
		t.Errorf("before a restart: %+v", a)
	}
	g.restart()
	if a := g.Stats().Accounts; a != want {
		t.Errorf("after a restart: %+v", a)
	}
}
