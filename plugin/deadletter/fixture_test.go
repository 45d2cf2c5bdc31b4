package deadletter

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

var epoch = time.Unix(1727712000, 0)

func newPath(tb testing.TB) string { return filepath.Join(tb.TempDir(), "dead.db") }

func openStore(tb testing.TB, path string) *Store {
	tb.Helper()
	s, err := Open(path, Limits{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// operator is the same database as another program has it.
func operator(tb testing.TB, path string) *Store {
	tb.Helper()
	s, err := OpenExisting(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// letter is the nth message, accepted at the nth second and dead an hour later.
func letter(n int) Letter {
	return Letter{
		Device:      fmt.Sprintf("sensor_%03d", n%3),
		MessageID:   fmt.Sprintf("550e8400-e29b-41d4-a716-%012x", n),
		Timestamp:   epoch.Unix() + int64(n),
		AcceptedAt:  epoch.Add(time.Duration(n) * time.Second),
		DiedAt:      epoch.Add(time.Hour + time.Duration(n)*time.Second),
		Topic:       "device/sensor/data",
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		Payload:     fmt.Appendf(nil, `{"n":%d}`, n),
		Reason:      []string{"refused", "expired"}[n%2],
		Status:      400,
		Excerpt:     "no",
		Attempts:    1,
	}
}

func add(tb testing.TB, s *Store, letters ...Letter) {
	tb.Helper()
	for _, l := range letters {
		if err := s.Add(tb.Context(), l); err != nil {
			tb.Fatal(err)
		}
	}
}

func list(tb testing.TB, s *Store, f Filter, limit int) []Letter {
	tb.Helper()
	var all []Letter
	for l, err := range s.List(tb.Context(), f, limit) {
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func ids(letters []Letter) []int64 {
	ids := []int64{}
	for _, l := range letters {
		ids = append(ids, l.ID)
	}
	return ids
}

func get(tb testing.TB, s *Store, id int64) Letter {
	tb.Helper()
	l, err := s.Get(tb.Context(), id)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func requeued(tb testing.TB, s *Store, limit int) []Letter {
	tb.Helper()
	letters, err := s.Requeued(tb.Context(), limit)
	if err != nil {
		tb.Fatal(err)
	}
	return letters
}

func totals(tb testing.TB, s *Store) Totals {
	tb.Helper()
	t, err := s.Totals(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// changed checks the outcome of Requeue or Drop.
func changed(tb testing.TB, want int64) func(int64, error) {
	return func(n int64, err error) {
		tb.Helper()
		if n != want || err != nil {
			tb.Errorf("changed %d, %v, want %d", n, err, want)
		}
	}
}

func waitUntil(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("timed out")
		}
	}
}

func execute(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}
