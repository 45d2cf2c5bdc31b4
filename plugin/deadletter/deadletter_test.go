package deadletter

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"mosquitto-bouncer/plugin/sqlite"
)

var epoch = time.Unix(1727712000, 0)

func newPath(tb testing.TB) string { return filepath.Join(tb.TempDir(), "dead.db") }

func openStore(tb testing.TB, path string) *Store {
	tb.Helper()
	s, err := Open(path)
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

func TestLetterIsKeptAsItWas(t *testing.T) {
	path := newPath(t)
	s := openStore(t, path)
	want := letter(1)
	want.Payload = []byte("\x00\xff'\"; DROP TABLE letters; --\n\u202e")
	want.Excerpt = "\x1b[2J\x00\u009b31m"
	want.AcceptedAt = time.Unix(1727712000, 123456789)
	add(t, s, want)
	want.ID, want.Bytes, want.Deaths = 1, int64(len(want.Payload)), 1
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got := get(t, operator(t, path), 1)
	if !got.AcceptedAt.Equal(want.AcceptedAt) || !got.DiedAt.Equal(want.DiedAt) {
		t.Errorf("accepted at %v, died at %v", got.AcceptedAt, got.DiedAt)
	}
	got.AcceptedAt, got.DiedAt = want.AcceptedAt, want.DiedAt
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	listed := list(t, operator(t, path), Filter{}, 0)[0]
	if listed.Payload != nil || listed.Bytes != want.Bytes {
		t.Errorf("listed with payload %q, %d bytes", listed.Payload, listed.Bytes)
	}
}

func TestEmptyAndLargePayloads(t *testing.T) {
	s := openStore(t, newPath(t))
	large := letter(2)
	large.Payload = bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	empty := letter(1)
	empty.Payload = nil
	add(t, s, empty, large)
	if got := get(t, s, 1); len(got.Payload) != 0 || got.Bytes != 0 {
		t.Errorf("%d bytes", len(got.Payload))
	}
	if got := get(t, s, 2); !bytes.Equal(got.Payload, large.Payload) {
		t.Errorf("%d bytes", len(got.Payload))
	}
	if got := totals(t, s); got != (Totals{Letters: 2, Bytes: 16 << 20}) {
		t.Errorf("%+v", got)
	}
	changed(t, 1)(s.Requeue(t.Context(), Filter{IDs: []int64{1, 2}}, epoch)) // the other has nothing to send
	if got := ids(requeued(t, s, 10)); !slices.Equal(got, []int64{2}) {
		t.Errorf("letters %d", got)
	}
}

func TestTextIsBounded(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"short", "no", "no"},
		{"exact", strings.Repeat("a", 1024), strings.Repeat("a", 1024)},
		{"long", strings.Repeat("a", 1025), strings.Repeat("a", 1024)},
		{"cut before a rune", strings.Repeat("a", 1022) + "€", strings.Repeat("a", 1022)},
		{"rune that fits", strings.Repeat("a", 1021) + "€b", strings.Repeat("a", 1021) + "€"},
		{"invalid", "a\xffb", "a\uFFFDb"},
		{"invalid and long", strings.Repeat("\xffa", 600), strings.Repeat("\uFFFDa", 256)},
		{"continuation bytes", strings.Repeat("\x80", 2000), "\uFFFD"},
	} {
		if got := bounded(test.in, MaxExcerpt); got != test.want || !utf8.ValidString(got) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
	s := openStore(t, newPath(t))
	l := letter(1)
	l.Excerpt = strings.Repeat("x", 5000)
	add(t, s, l)
	if got := get(t, s, 1); got.Excerpt != l.Excerpt[:MaxExcerpt] {
		t.Errorf("%d bytes", len(got.Excerpt))
	}
}

func TestAddRefuses(t *testing.T) {
	s := openStore(t, newPath(t))
	for want, spoil := range map[string]func(*Letter){
		"dead letter without a device":     func(l *Letter) { l.Device = "" },
		"dead letter without a message id": func(l *Letter) { l.MessageID = "" },
		"dead letter without a reason":     func(l *Letter) { l.Reason = "" },
		"dead letter without its times":    func(l *Letter) { l.DiedAt = time.Time{} },
	} {
		l := letter(1)
		spoil(&l)
		if err := s.Add(t.Context(), l); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if got := totals(t, s); got != (Totals{}) {
		t.Errorf("%+v", got)
	}
}

func TestOneDeathIsOneLetter(t *testing.T) {
	s := openStore(t, newPath(t))
	first := letter(1)
	add(t, s, first)
	changed(t, 1)(s.Requeue(t.Context(), Filter{}, epoch))
	before := get(t, s, 1)

	same := first
	same.MessageID = strings.ToUpper(first.MessageID)
	add(t, s, same)
	if got := get(t, s, 1); !reflect.DeepEqual(got, before) {
		t.Errorf("added once more: %+v, was %+v", got, before)
	}

	// The crash came before the journal knew: it is tried and dies once more.
	later := first
	later.DiedAt, later.AcceptedAt = first.DiedAt.Add(time.Minute), first.AcceptedAt.Add(time.Minute)
	later.Reason, later.Status, later.Attempts, later.Excerpt = "expired", 503, 9, "late"
	later.Payload = []byte(`{"n":1.0}`)
	add(t, s, later)
	got := get(t, s, 1)
	if got.Reason != "expired" || got.Status != 503 || got.Attempts != 9 || got.Excerpt != "late" || got.Deaths != 2 ||
		!got.DiedAt.Equal(later.DiedAt) || !got.AcceptedAt.Equal(first.AcceptedAt) || string(got.Payload) != `{"n":1.0}` ||
		!got.RequeuedAt.IsZero() {
		t.Errorf("%+v", got)
	}
	if got := totals(t, s); got != (Totals{Letters: 1, Bytes: 9}) {
		t.Errorf("%+v", got)
	}

	// Another message, though the device used the id again; and another device's.
	again := first
	again.Timestamp++
	foreign := first
	foreign.Device = "other"
	add(t, s, again, foreign)
	if got := totals(t, s); got != (Totals{Letters: 3, Bytes: 23}) {
		t.Errorf("%+v", got)
	}
}

func TestList(t *testing.T) {
	s := openStore(t, newPath(t))
	var letters []Letter
	for _, n := range rand.Perm(2500) { // not in the order of their deaths
		letters = append(letters, letter(n+1))
	}
	addAtOnce(t, s, letters)
	all := list(t, s, Filter{}, 0)
	if len(all) != 2500 || !slices.IsSortedFunc(all, func(a, b Letter) int { return b.DiedAt.Compare(a.DiedAt) }) {
		t.Fatalf("%d letters, or not the last to die first", len(all))
	}
	half := epoch.Add(time.Hour + 1251*time.Second)
	for _, test := range []struct {
		name   string
		filter Filter
		keep   func(Letter) bool
	}{
		{"all", Filter{}, func(Letter) bool { return true }},
		{"device", Filter{Device: "sensor_001"}, func(l Letter) bool { return l.Device == "sensor_001" }},
		{"reason", Filter{Reason: "expired"}, func(l Letter) bool { return l.Reason == "expired" }},
		{"since", Filter{Since: half}, func(l Letter) bool { return !l.DiedAt.Before(half) }},
		{"all three", Filter{Device: "sensor_002", Reason: "refused", Since: half}, func(l Letter) bool {
			return l.Device == "sensor_002" && l.Reason == "refused" && !l.DiedAt.Before(half)
		}},
		{"numbers", Filter{IDs: []int64{7, 2000, 9999}}, func(l Letter) bool { return l.ID == 7 || l.ID == 2000 }},
		{"nothing", Filter{Device: "sensor_00"}, func(Letter) bool { return false }},
	} {
		want := []int64{}
		for _, l := range all {
			if test.keep(l) {
				want = append(want, l.ID)
			}
		}
		for _, limit := range []int{0, 1, 10, 999, 1000, 1001, 5000} {
			expected := want
			if limit > 0 {
				expected = want[:min(limit, len(want))]
			}
			if got := ids(list(t, s, test.filter, limit)); !slices.Equal(got, expected) {
				t.Errorf("%s, limit %d: %d letters, want %d, or in another order", test.name, limit, len(got), len(expected))
			}
		}
		if n, err := s.Count(t.Context(), test.filter); n != int64(len(want)) || err != nil {
			t.Errorf("%s: counted %d, %v, want %d", test.name, n, err, len(want))
		}
	}
}

// Letters that died at once are not lost between two pages.
func TestListOfOneInstant(t *testing.T) {
	s := openStore(t, newPath(t))
	var letters []Letter
	for n := range 2100 {
		l := letter(n)
		l.DiedAt = epoch
		letters = append(letters, l)
	}
	addAtOnce(t, s, letters)
	got := ids(list(t, s, Filter{}, 0))
	slices.Reverse(got)
	for i, id := range got {
		if id != int64(i+1) {
			t.Fatalf("letter %d in place %d", id, i+1)
		}
	}
	if len(got) != 2100 {
		t.Errorf("%d letters", len(got))
	}
}

// The queries that must be quick however many letters there are neither sort nor read all.
func TestQueriesUseTheirIndexes(t *testing.T) {
	s := openStore(t, newPath(t))
	for _, test := range []struct {
		filter Filter
		index  string
	}{
		{Filter{}, "letters_died"},
		{Filter{Since: epoch}, "letters_died"},
		{Filter{Device: "a"}, "letters_device_died"},
		{Filter{Device: "a", Since: epoch}, "letters_device_died"},
		{Filter{Reason: "a"}, "letters_reason_died"},
	} {
		where, args := test.filter.where()
		plan := explain(t, s, "SELECT "+columns+" FROM letters WHERE "+where+
			" AND (died_at, id) < (?, ?) ORDER BY died_at DESC, id DESC LIMIT ?", append(args, 1, 1, 1)...)
		if !strings.Contains(plan, "SEARCH letters USING INDEX "+test.index+" ") || strings.Contains(plan, "TEMP B-TREE") {
			t.Errorf("%+v: %s", test.filter, plan)
		}
	}
	plan := explain(t, s, "SELECT "+columns+`, payload FROM letters JOIN payloads ON letter = id
		WHERE requeued_at IS NOT NULL ORDER BY accepted_at, id LIMIT ?`, 1)
	if !strings.Contains(plan, "SCAN letters USING INDEX letters_requeued") || strings.Contains(plan, "TEMP B-TREE") {
		t.Error(plan)
	}
}

func explain(t *testing.T, s *Store, query string, args ...any) (plan string) {
	t.Helper()
	err := s.use(t.Context(), func(conn *sql.Conn) error {
		rows, err := conn.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				return err
			}
			plan += detail + "; "
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func TestRequeue(t *testing.T) {
	path := newPath(t)
	s, o := openStore(t, path), operator(t, path)
	for _, n := range []int{5, 3, 1, 4, 2} {
		add(t, s, letter(n))
	}
	if got := requeued(t, s, 10); len(got) != 0 {
		t.Errorf("%d before anybody asked", len(got))
	}
	changed(t, 4)(o.Requeue(t.Context(), Filter{IDs: []int64{1, 2, 3, 5}}, epoch))
	changed(t, 0)(o.Requeue(t.Context(), Filter{IDs: []int64{1, 2}}, epoch.Add(time.Hour)))
	if got := get(t, o, 1); !got.RequeuedAt.Equal(epoch) {
		t.Errorf("the first request was at %v", got.RequeuedAt)
	}
	if got := totals(t, o); got.Requeued != 4 {
		t.Errorf("%+v", got)
	}

	taken := requeued(t, s, 3) // in the order of acceptance
	if got := ids(taken); !slices.Equal(got, []int64{3, 5, 2}) {
		t.Errorf("letters %d", got)
	}
	for _, l := range taken {
		if want := fmt.Sprintf(`{"n":%d}`, l.Timestamp-epoch.Unix()); string(l.Payload) != want {
			t.Errorf("letter %d has %s, want %s", l.ID, l.Payload, want)
		}
	}
	if again := requeued(t, s, 3); !reflect.DeepEqual(again, taken) {
		t.Error("what is not removed is not taken again")
	}
	if err := s.Remove(t.Context(), taken...); err != nil {
		t.Fatal(err)
	}
	if got := ids(requeued(t, s, 3)); !slices.Equal(got, []int64{1}) {
		t.Errorf("letters %d", got)
	}
	if err := s.Remove(t.Context(), taken...); err != nil {
		t.Errorf("removing again: %v", err)
	}
	if got := totals(t, o); got != (Totals{Letters: 2, Bytes: 14, Requeued: 1}) {
		t.Errorf("%+v", got)
	}
}

// What dies again while the plugin still has its letter is not removed with it.
func TestDeathBeforeRemove(t *testing.T) {
	path := newPath(t)
	s, o := openStore(t, path), operator(t, path)
	add(t, s, letter(1))
	for range 2 {
		changed(t, 1)(o.Requeue(t.Context(), Filter{}, epoch))
		taken := requeued(t, s, 1)
		again := taken[0]
		again.DiedAt = again.DiedAt.Add(time.Minute)
		add(t, s, again)
		if got := requeued(t, s, 1); len(got) != 0 {
			t.Error("requeued without being asked to")
		}
		// Nor if an operator asks anew before the letter is removed.
		changed(t, 1)(o.Requeue(t.Context(), Filter{}, epoch))
		if err := s.Remove(t.Context(), taken...); err != nil {
			t.Fatal(err)
		}
		got := requeued(t, s, 1)
		if len(got) != 1 || got[0].ID != 1 || got[0].Deaths != taken[0].Deaths+1 {
			t.Fatalf("%+v", got)
		}
		again.DiedAt = again.DiedAt.Add(time.Minute)
		add(t, s, again)
	}
}

func TestRequeuedIsBounded(t *testing.T) {
	s := openStore(t, newPath(t))
	sizes := []int{maxRequeuedBytes + 1, maxRequeuedBytes - 1, 1, 1, 0}
	for i, size := range sizes {
		l := letter(i)
		l.Payload = make([]byte, size)
		add(t, s, l)
	}
	changed(t, 4)(s.Requeue(t.Context(), Filter{}, epoch))
	for _, want := range [][]int64{{1}, {2, 3}, {4}, {}} {
		got := requeued(t, s, 10)
		if !slices.Equal(ids(got), want) {
			t.Errorf("letters %d, want %d", ids(got), want)
		}
		if err := s.Remove(t.Context(), got...); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChangeByNumberIsAllOrNothing(t *testing.T) {
	s := openStore(t, newPath(t))
	add(t, s, letter(1), letter(2), letter(3))
	for _, change := range []func(Filter) (int64, error){
		func(f Filter) (int64, error) { return s.Requeue(t.Context(), f, epoch) },
		func(f Filter) (int64, error) { return s.Drop(t.Context(), f) },
	} {
		n, err := change(Filter{IDs: []int64{1, 99, 2}})
		if n != 0 || !errors.Is(err, ErrNotFound) || err.Error() != "dead letter 99: no such letter" {
			t.Errorf("%d, %v", n, err)
		}
		if got := totals(t, s); got != (Totals{Letters: 3, Bytes: 21}) {
			t.Errorf("%+v", got)
		}
		changed(t, 0)(change(Filter{IDs: []int64{}}))
	}
	changed(t, 2)(s.Drop(t.Context(), Filter{IDs: []int64{1, 1, 3}}))
	if got := ids(list(t, s, Filter{}, 0)); !slices.Equal(got, []int64{2}) {
		t.Errorf("letters %d are left", got)
	}
	if _, err := s.Get(t.Context(), 1); !errors.Is(err, ErrNotFound) || err.Error() != "dead letter 1: no such letter" {
		t.Error(err)
	}
	add(t, s, letter(4)) // a number is not used twice
	if got := ids(list(t, s, Filter{}, 0)); !slices.Equal(got, []int64{4, 2}) {
		t.Errorf("letters %d", got)
	}
}

func TestChangeByFilter(t *testing.T) {
	s := openStore(t, newPath(t))
	var letters []Letter
	for n := range 3000 {
		letters = append(letters, letter(n))
	}
	addAtOnce(t, s, letters)
	changed(t, 1000)(s.Requeue(t.Context(), Filter{Device: "sensor_001"}, epoch))
	changed(t, 2000)(s.Requeue(t.Context(), Filter{}, epoch))
	changed(t, 1000)(s.Drop(t.Context(), Filter{Device: "sensor_002"}))
	changed(t, 1000)(s.Drop(t.Context(), Filter{Reason: "expired"}))
	for _, l := range list(t, s, Filter{}, 0) {
		if l.Device == "sensor_002" || l.Reason == "expired" {
			t.Fatalf("%+v is left", l)
		}
	}
	changed(t, 1000)(s.Drop(t.Context(), Filter{}))
	if got := totals(t, s); got != (Totals{}) {
		t.Errorf("%+v", got)
	}
	err := s.use(t.Context(), func(conn *sql.Conn) error {
		n, err := sqlite.Number(t.Context(), conn, "SELECT count(*) FROM payloads")
		if n != 0 {
			t.Errorf("%d payloads are left", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// The disk has the room again once letters are dropped.
func TestDropShrinksTheFile(t *testing.T) {
	path := newPath(t)
	s := openStore(t, path)
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	empty := size()
	for n := range 200 {
		l := letter(n)
		l.Payload = make([]byte, 64<<10)
		add(t, s, l)
	}
	if full := size(); full < 200*64<<10 {
		t.Fatalf("%d bytes", full)
	}
	changed(t, 200)(s.Drop(t.Context(), Filter{}))
	if got := size(); got > empty+8192 {
		t.Errorf("%d bytes are left, %d were there at first", got, empty)
	}
}

// addAtOnce adds letters as many lanes do.
func addAtOnce(tb testing.TB, s *Store, letters []Letter) {
	tb.Helper()
	var lanes sync.WaitGroup
	next := make(chan Letter)
	for range 512 {
		lanes.Go(func() {
			for l := range next {
				if err := s.Add(tb.Context(), l); err != nil {
					tb.Error(err)
				}
			}
		})
	}
	for _, l := range letters {
		next <- l
	}
	close(next)
	lanes.Wait()
}

// TestEverybodyAtOnce: lanes add, the plugin takes back, operators list, requeue and drop; nothing is lost, doubled or
// reported busy.
func TestEverybodyAtOnce(t *testing.T) {
	path := newPath(t)
	s, o := openStore(t, path), operator(t, path)
	const n = 1500
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() {
		for ctx.Err() == nil {
			if _, err := o.Requeue(t.Context(), Filter{Device: "sensor_001"}, epoch); err != nil {
				t.Error(err)
				return
			}
			if _, err := o.Drop(t.Context(), Filter{Device: "sensor_002"}); err != nil {
				t.Error(err)
				return
			}
			for _, err := range o.List(t.Context(), Filter{}, 0) {
				if err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	taken := make(map[string]int)
	take := func() int {
		letters, err := s.Requeued(t.Context(), 100)
		if err != nil {
			t.Error(err)
		}
		for _, l := range letters {
			taken[l.MessageID]++
		}
		if err := s.Remove(t.Context(), letters...); err != nil {
			t.Error(err)
		}
		return len(letters)
	}
	others.Go(func() {
		for ctx.Err() == nil {
			take()
		}
	})
	var letters []Letter
	for i := range n {
		letters = append(letters, letter(i))
	}
	addAtOnce(t, s, letters)
	stop()
	others.Wait()

	if _, err := o.Requeue(t.Context(), Filter{Device: "sensor_001"}, epoch); err != nil {
		t.Fatal(err)
	}
	for take() > 0 {
	}
	if _, err := o.Drop(t.Context(), Filter{Device: "sensor_002"}); err != nil {
		t.Fatal(err)
	}
	for id, times := range taken {
		if times != 1 {
			t.Errorf("%s was taken %d times", id, times)
		}
	}
	if got := totals(t, s); len(taken) != n/3 || got.Letters != n/3 || got.Requeued != 0 {
		t.Errorf("%d taken, %+v left, want %d each", len(taken), got, n/3)
	}
}

// One transaction stores many letters: adding them must not take an fsync each.
func TestAddsShareTransactions(t *testing.T) {
	s := openStore(t, newPath(t))
	s.turn <- struct{}{} // the database is busy
	const n = 300
	var lanes sync.WaitGroup
	for i := range n {
		lanes.Go(func() {
			if err := s.Add(t.Context(), letter(i)); err != nil {
				t.Error(err)
			}
		})
	}
	waitUntil(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.waiting) == n
	})
	batch := s.takeWaiting()
	if len(batch) != n {
		t.Errorf("%d of %d in one transaction", len(batch), n)
	}
	s.mu.Lock()
	s.waiting = append(batch, s.waiting...)
	s.mu.Unlock()
	<-s.turn
	lanes.Wait()
	if got := totals(t, s); got.Letters != n {
		t.Errorf("%d letters", got.Letters)
	}
}

func TestTransactionsOfAddsAreBounded(t *testing.T) {
	s := new(Store)
	wait := func(size, n int) {
		for range n {
			s.waiting = append(s.waiting, &addition{Letter: Letter{Payload: make([]byte, size)}})
		}
	}
	wait(maxAdditionBytes+1, 1)
	wait(maxAdditionBytes/2, 3)
	wait(0, maxAdditions+1)
	for _, want := range []int{1, 2, maxAdditions, 2, 0} {
		if got := len(s.takeWaiting()); got != want {
			t.Errorf("%d letters, want %d", got, want)
		}
	}
}

func TestAddCanceled(t *testing.T) {
	s := openStore(t, newPath(t))
	s.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Add(ctx, letter(1)) }()
	waitUntil(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.waiting) == 1
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-s.turn
	add(t, s, letter(2))
	if got := list(t, s, Filter{}, 0); len(got) != 1 || got[0].Timestamp != epoch.Unix()+2 {
		t.Errorf("%+v", got)
	}
	if _, err := s.Requeued(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
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

func TestFullDisk(t *testing.T) {
	s := openStore(t, newPath(t))
	add(t, s, letter(1))
	pages := func(statement string) {
		t.Helper()
		if err := s.use(t.Context(), func(conn *sql.Conn) error {
			_, err := sqlite.Number(t.Context(), conn, statement)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	pages("PRAGMA max_page_count = 1") // becomes what there is
	file := s.file
	large := letter(2)
	large.Payload = make([]byte, 1<<20)
	err := s.Add(t.Context(), large)
	if err == nil || !strings.Contains(err.Error(), "full; make room on the disk") {
		t.Fatal(err)
	}
	if s.conn != nil {
		t.Error("the connection was kept")
	}
	add(t, s, large) // there is room again
	if got := totals(t, s); got.Letters != 2 || !os.SameFile(file, s.file) {
		t.Errorf("%+v", got)
	}
}

func TestBusy(t *testing.T) {
	path := newPath(t)
	s := openStore(t, path)
	o, err := open(&Store{path: path, busy: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	err = s.use(t.Context(), func(conn *sql.Conn) error {
		return sqlite.Write(t.Context(), conn, func() error {
			_, err := o.Drop(t.Context(), Filter{})
			want := "dead letters: " + path + ": database is locked; another program has not ended its transaction, try again"
			if err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	changed(t, 0)(o.Drop(t.Context(), Filter{}))
}

func TestPanicLeavesNoLock(t *testing.T) {
	s := openStore(t, newPath(t))
	func() {
		defer func() { _ = recover() }()
		_ = s.use(t.Context(), func(conn *sql.Conn) error {
			return sqlite.Write(t.Context(), conn, func() error { panic("oops") })
		})
	}()
	add(t, s, letter(1))
}

// A database that is moved away or replaced is not written to any more.
func TestReplacedFile(t *testing.T) {
	path := newPath(t)
	s := openStore(t, path)
	add(t, s, letter(1))
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	add(t, s, letter(2))
	if got := list(t, operator(t, path), Filter{}, 0); len(got) != 1 || got[0].Timestamp != epoch.Unix()+2 {
		t.Errorf("%+v", got)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	add(t, s, letter(3))
	if got := totals(t, operator(t, path)); got.Letters != 2 {
		t.Errorf("%+v", got)
	}

	o := operator(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Totals(t.Context()); !errors.Is(err, fs.ErrNotExist) ||
		err.Error() != "dead letters: "+path+": no such file or directory" {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := newPath(t)
	if _, err := OpenExisting(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("OpenExisting made it")
	}
	_ = openStore(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if got := totals(t, operator(t, path)); got != (Totals{}) {
		t.Errorf("%+v", got)
	}
	odd := filepath.Join(t.TempDir(), "50% of?dead#1 &mode=memory.db")
	add(t, openStore(t, odd), letter(1))
	if got := totals(t, operator(t, odd)); got.Letters != 1 {
		t.Errorf("%+v", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		name string
		make func(path string)
		want string
	}{
		{"other tables", func(path string) { execute(t, path, "CREATE TABLE devices (x)") },
			"not a database of dead letters; move it away, or name another state_dir"},
		{"other application", func(path string) { execute(t, path, "PRAGMA application_id = 7") },
			"not a database of dead letters; move it away, or name another state_dir"},
		{"newer", func(path string) {
			_ = openStore(t, path)
			execute(t, path, "PRAGMA user_version = 3")
		}, "made by a newer version of this program: database version 3, newest known 2; upgrade this program, or use another state_dir"},
		{"text", func(path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("text "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "file is not a database; move it away, or restore it from a backup"},
		{"missing/directory", func(string) {}, "no such file or directory"},
	} {
		path := filepath.Join(dir, test.name)
		test.make(path)
		s, err := Open(path)
		if err == nil {
			_ = s.Close()
		}
		if want := "dead letters: " + path + ": " + test.want; err == nil || err.Error() != want {
			t.Errorf("%s: got  %v\nwant %s", test.name, err, want)
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

func TestMigrationsAtOnce(t *testing.T) {
	path := newPath(t)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var openers sync.WaitGroup
	for range 8 {
		openers.Go(func() {
			s, err := Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			_ = s.Close()
		})
	}
	openers.Wait()
	add(t, openStore(t, path), letter(1))
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	s := openStore(t, newPath(t))
	err := s.use(t.Context(), func(conn *sql.Conn) error {
		next := schema()
		next.Migrations = append(next.Migrations, "CREATE TABLE second (x); INSERT INTO nowhere VALUES (1)")
		err := next.Migrate(t.Context(), conn)
		if err == nil || err.Error() != "migration to version 3: no such table: nowhere" {
			t.Errorf("%v", err)
		}
		n, err := sqlite.Number(t.Context(), conn, "SELECT count(*) + (SELECT user_version FROM pragma_user_version) FROM sqlite_schema WHERE name = 'second'")
		if n != 2 {
			t.Errorf("%d", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestClosed(t *testing.T) {
	s := openStore(t, newPath(t))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Add(t.Context(), letter(1)); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Totals(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// An operator who may read may list.
func TestWithoutWritePermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write any file")
	}
	path := newPath(t)
	add(t, openStore(t, path), letter(1))
	if err := os.Chmod(path, 0o440); err != nil {
		t.Fatal(err)
	}
	o := operator(t, path)
	if got := totals(t, o); got.Letters != 1 {
		t.Errorf("%+v", got)
	}
	_, err := o.Drop(t.Context(), Filter{})
	if err == nil || !strings.HasSuffix(err.Error(), "readonly database; it must be possible to write it and its directory: the broker's user can, and root") {
		t.Error(err)
	}
}

func BenchmarkAdd(b *testing.B) {
	s := openStore(b, newPath(b))
	b.SetParallelism(32) // 64 lanes on two processors
	var n int64
	var mu sync.Mutex
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n++
			l := letter(int(n))
			mu.Unlock()
			if err := s.Add(b.Context(), l); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkHundredThousand measures what an operator waits for; run it with -benchtime 1x.
func BenchmarkHundredThousand(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		s := openStore(b, newPath(b))
		var letters []Letter
		for i := range n {
			l := letter(i)
			l.Excerpt = strings.Repeat("x", 300)
			l.Payload = append(l.Payload, make([]byte, 200)...)
			letters = append(letters, l)
		}
		measure := func(unit string, do func()) {
			start := time.Now()
			do()
			b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/"+unit)
		}
		measure("add", func() { addAtOnce(b, s, letters) })
		measure("list-100", func() { list(b, s, Filter{}, 100) })
		measure("list-100-of-device", func() { list(b, s, Filter{Device: "sensor_001"}, 100) })
		measure("list", func() { list(b, s, Filter{}, 0) })
		measure("totals", func() { totals(b, s) })
		measure("count-of-device", func() { _, _ = s.Count(b.Context(), Filter{Device: "sensor_001"}) })
		measure("poll", func() { requeued(b, s, 100) })
		measure("requeue", func() { changed(b, n)(s.Requeue(b.Context(), Filter{}, epoch)) })
		measure("take-1000", func() {
			for range 10 {
				if err := s.Remove(b.Context(), requeued(b, s, 100)...); err != nil {
					b.Fatal(err)
				}
			}
		})
		measure("drop", func() { changed(b, n-1000)(s.Drop(b.Context(), Filter{})) })
	}
}
