package plugin

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/gate"
)

// TestAnswersSurviveACrash: the answer to a command that was acknowledged to its device, and not stored yet when the
// process ended, is stored after the next start; its id still counts as used.
func TestAnswersSurviveACrash(t *testing.T) {
	address, settings := httpSettings(t)
	g := startGateway(t, settings)
	made, _, err := g.service.commands.Create(t.Context(), command.Request{Device: "sensor_001", Body: []byte("1"), TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	g.service.commands.Send(made)
	g.until("sent", func() bool { return len(g.host.published) > 0 })
	g.until("stored as sent", func() bool {
		stored, err := g.service.commands.Get(t.Context(), made.ID)
		return err == nil && stored.State == command.Sent
	})

	// Another writer locks the store's database. The acknowledged answer is in the journal nevertheless.
	db, err := sql.Open("sqlite3", filepath.Join(g.dir, command.FileName)+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lock, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := g.obey(g.host.published[0])
	crashed := t.TempDir()
	if err := os.CopyFS(crashed, os.DirFS(g.dir)); err != nil {
		t.Fatal(err)
	}
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}

	file := filepath.Join(crashed, "bouncer.toml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := httpSettings(t)
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), address, other, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	next := &aGateway{t: t, host: new(aBroker)}
	if next.Gateway, err = Start(file, next.host); err != nil {
		t.Fatal(err)
	}
	defer next.Stop()
	next.until("the answer is stored", func() bool {
		stored, err := next.service.commands.Get(context.Background(), made.ID)
		return err == nil && stored.State == command.Succeeded && string(stored.Result) == "[1]"
	})
	next.until("nothing is left to do in the journal", func() bool { return next.Stats().Journal.Pending == 0 })
	answer.Connection++
	answer.ClientID = []byte("another")
	if next.send(answer) != gate.Refuse || next.host.count("reason=replay") != 1 {
		t.Errorf("the answer once more: %s", next.host.last())
	}
}
