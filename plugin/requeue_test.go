package plugin

import (
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/deadletter"
)

// TestRequeuedOnceThoughItsLetterStays: letters that are in the journal are not put there once more while their removal
// fails, as it does on a full disk, and are removed as soon as it succeeds.
func TestRequeuedOnceThoughItsLetterStays(t *testing.T) {
	g := startGateway(t, "")
	now := time.Now()
	letter := deadletter.Letter{
		Device: "sensor_001", MessageID: uuid.NewString(), Timestamp: now.Unix(), AcceptedAt: now, DiedAt: now,
		Topic: "device/sensor_001/data", Payload: []byte("{}"), Reason: "refused",
	}
	if err := g.store.letters.Add(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite3", filepath.Join(g.dir, deadletter.FileName)+"?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TRIGGER full BEFORE DELETE ON letters BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
	if n, err := g.store.letters.Requeue(t.Context(), deadletter.Filter{}, now); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	g.tickUntil("delivery", func() bool { return g.backend.Load() == 1 })
	for end := time.Now().Add(3 * housekeepingInterval); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		g.Tick()
	}
	if n := g.backend.Load(); n != 1 {
		t.Errorf("the backend got %d requests", n)
	}
	exec("DROP TRIGGER full")
	g.tickUntil("its removal", func() bool {
		totals, err := g.store.letters.Totals(t.Context())
		return err == nil && totals.Letters == 0
	})
	if a := g.Stats().Accounts; a != (Accounts{Accepted: 1, Delivered: 1}) {
		t.Errorf("%+v", a)
	}
}
