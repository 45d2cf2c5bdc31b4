package outbox

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/journal"
)

// TestRequeuedOnceThoughItsLetterStays: letters that are in the journal are not put there again while their removal
// fails, as it does on a full disk, and are removed as soon as it succeeds.
func TestRequeuedOnceThoughItsLetterStays(t *testing.T) {
	b := openBox(t, nil)
	now := time.Now()
	letter := deadletter.Letter{
		Device: "sensor_001", MessageID: uuid.NewString(), Timestamp: now.Unix(), AcceptedAt: now, DiedAt: now,
		Topic: "device/sensor_001/data", Payload: []byte("{}"), Reason: "refused",
	}
	if err := b.messages.letters.Add(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite3", filepath.Join(b.options.StateDir, deadletter.FileName)+"?_busy_timeout=5000")
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
	if n, err := b.messages.letters.Requeue(t.Context(), deadletter.Filter{}, now); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	b.tickUntil("delivery", func() bool { return b.delivered.Load() == 1 })
	for end := time.Now().Add(3 * housekeepingInterval); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		b.round()
	}
	if n := b.delivered.Load(); n != 1 {
		t.Errorf("the backend got %d requests", n)
	}
	exec("DROP TRIGGER full")
	b.tickUntil("its removal", func() bool {
		totals, err := b.messages.letters.Totals(t.Context())
		return err == nil && totals.Letters == 0
	})
	if a := b.Stats().Accounts; a != (Accounts{Accepted: 1, Delivered: 1}) {
		t.Errorf("%+v", a)
	}
}

// TestRequeuedBeyondTheShare: a device that has taken its share of the journal has its letters requeued all the same, for
// that is what makes room among the dead letters; no other device's wait
// behind them.
func TestRequeuedBeyondTheShare(t *testing.T) {
	b := openBox(t, func(o *Options) { o.Journal.DeviceShare = 0.001 })
	now := time.Now()
	for n := 0; ; n++ {
		_, err := b.journal.Append(&journal.Accepted{
			Device: "sensor_001", MessageID: uuid.New(), Timestamp: now.Unix(), AcceptedAt: now, Payload: make([]byte, 10000),
		})
		if errors.Is(err, journal.ErrShare) {
			break
		}
		if err != nil || n > 1000 {
			t.Fatal(n, err)
		}
	}
	first := now.Add(-26*time.Hour - 300*time.Millisecond)
	for _, device := range []string{"sensor_001", "another"} {
		if err := b.messages.letters.Add(t.Context(), deadletter.Letter{
			Device: device, MessageID: uuid.NewString(), Timestamp: now.Unix(), AcceptedAt: first, DiedAt: now,
			Topic: "device/x/data", Payload: []byte("{}"), Reason: "refused",
		}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := b.messages.letters.Requeue(t.Context(), deadletter.Filter{}, now); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	b.tickUntil("delivery", func() bool { return b.delivered.Load() == 2 })
}

// A record keeps to the second when its message was accepted first.
func TestFirstAcceptedAt(t *testing.T) {
	now := time.Unix(1727712000, 5)
	for age, kept := range map[time.Duration]time.Duration{
		-time.Hour: time.Second, 0: time.Second, time.Second: time.Second, time.Hour + 1: time.Hour + time.Second,
		1000 * 24 * time.Hour: (1<<24 - 1) * time.Second,
	} {
		var a journal.Accepted
		a.Requeue(now.Add(-age), now)
		if got := now.Sub(a.FirstAcceptedAt()); got != kept || !a.AcceptedAt.Equal(now) {
			t.Errorf("%v became %v", age, got)
		}
	}
}
