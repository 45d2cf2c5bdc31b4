package deadletter

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/sqlite"
)

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
		// Nor if an operator asks again before the letter is removed.
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
