package deadletter

import (
	"bytes"
	"database/sql"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"mosquitto-bouncer/plugin/sqlite"
)

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

	// The crash came before the journal knew: it is tried and dies again.
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
			want := "dead letters: " + path + ": database is locked; another program has not ended its transaction; try again"
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
