package command

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"mosquitto-bouncer/plugin/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openAt(t *testing.T, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openNew(t *testing.T, o Options) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), FileName), o)
}

func create(t *testing.T, s *Store, r Request) Command {
	t.Helper()
	if r.TTL == 0 {
		r.TTL = time.Minute
	}
	c, _, err := s.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func state(t *testing.T, s *Store, id string) State {
	t.Helper()
	c, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c.State
}

func say(id, status, result string) []byte {
	if result != "" {
		result = `,"result":` + result
	}
	return fmt.Appendf(nil, `{"command_id":%q,"status":%q%s}`, id, status, result)
}

func TestLife(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	s := openAt(t, path, Options{})
	for _, want := range []State{Succeeded, Failed, Rejected} {
		before := time.Now()
		c := create(t, s, Request{Device: "d", Body: []byte(`{"a":1}`)})
		if c.State != Queued || !ValidID(c.ID) || c.Created.Before(before) || !c.SentAt.IsZero() || !c.FinishedAt.IsZero() {
			t.Errorf("new: %+v", c)
		}
		if ttl := c.Expires.Sub(c.Created); ttl < time.Minute || ttl > time.Minute+time.Second || c.Expires.Nanosecond() != 0 {
			t.Errorf("expires %v after %v", c.Expires, c.Created)
		}
		s.Sent(c.ID, time.Now())
		until(t, "sent", func() bool { return state(t, s, c.ID) == Sent })
		waited := make(chan Command)
		go func() {
			got, err := s.Wait(t.Context(), c.ID)
			if err != nil {
				t.Error(err)
			}
			waited <- got
		}()
		if err := s.Answered("d", say(c.ID, string(want), `{"x": [1]}`), time.Now(), func() {}); err != nil {
			t.Fatal(err)
		}
		got := <-waited
		if got.State != want || string(got.Result) != `{"x": [1]}` || got.FinishedAt.IsZero() || got.SentAt.IsZero() {
			t.Errorf("answered: %+v", got)
		}
		until(t, "out of memory", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.entries) == 0 })
		stored, err := s.Get(t.Context(), c.ID)
		if err != nil || fmt.Sprint(stored.State, string(stored.Body), string(stored.Result)) != fmt.Sprint(want, `{"a":1}`, `{"x": [1]}`) {
			t.Errorf("stored: %+v %v", stored, err)
		}
	}
	counts := s.Counts()
	if counts.Unfinished != 0 || counts.Bytes != 0 || counts.Created != 3 || counts.Answers != 3 || counts.ByState[Succeeded] != 1 {
		t.Errorf("%+v", counts)
	}
	if _, err := s.Get(t.Context(), NewID(time.Now())); !errors.Is(err, ErrNotFound) {
		t.Errorf("another id: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v %v", info.Mode(), err)
	}
}

func TestAnswersThatDoNotCount(t *testing.T) {
	s := openNew(t, Options{})
	c := create(t, s, Request{Device: "d", Body: []byte("1")})
	for i, bad := range [][]byte{
		say(c.ID, "done", ""), say(uuid.NewString(), "failed", ""), say(c.ID, "queued", ""), say(c.ID, "expired", ""),
		[]byte(`[]`), []byte(`{}`), []byte(`7`), []byte(`{"command_id":"` + c.ID + `","status":"failed","more":1}`),
		[]byte(`{"command_id":"` + strings.ToUpper(c.ID) + `","status":"failed"}`),
	} {
		_ = s.Answered("d", bad, time.Now(), func() {})
		until(t, fmt.Sprintf("%s counted", bad), func() bool { return s.Counts().Malformed == uint64(i+1) })
	}
	_ = s.Answered("e", say(c.ID, "succeeded", ""), time.Now(), func() {})
	_ = s.Answered("d", say(NewID(time.Now()), "succeeded", ""), time.Now(), func() {})
	until(t, "strays", func() bool { return s.Counts().Strays == 2 })
	if got := state(t, s, c.ID); got != Queued {
		t.Errorf("the command is %s", got)
	}
	_ = s.Answered("d", say(c.ID, "failed", `"`+strings.Repeat("x", MaxResult)+`"`), time.Now(), func() {})
	_ = s.Answered("d", say(c.ID, "succeeded", ""), time.Now(), func() {})
	until(t, "the second answer", func() bool { return s.Counts().Strays == 3 })
	if got, _ := s.Get(t.Context(), c.ID); got.State != Failed || got.Result != nil || !got.ResultDropped {
		t.Errorf("%+v", got)
	}
}

func TestIdempotencyKey(t *testing.T) {
	s := openNew(t, Options{MaxPerDevice: 3})
	first := create(t, s, Request{Device: "d", Key: "k", Body: []byte("1")})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			c, created, err := s.Create(t.Context(), Request{Device: "d", Key: "k", Body: []byte("1"), TTL: time.Hour})
			if err != nil || created || c.ID != first.ID || !c.Expires.Equal(first.Expires) {
				t.Errorf("%+v %v %v", c, created, err)
			}
		})
	}
	all.Wait()
	if _, _, err := s.Create(t.Context(), Request{Device: "d", Key: "k", Body: []byte("2"), TTL: time.Hour}); !errors.Is(err, ErrKeyReused) {
		t.Errorf("another body: %v", err)
	}
	if other := create(t, s, Request{Device: "e", Key: "k", Body: []byte("1")}); other.ID == first.ID {
		t.Error("one key for two devices")
	}
	// Without a key nothing is the same; where there is no room, a known key still leads to its command.
	for range 2 {
		create(t, s, Request{Device: "d", Body: []byte("1")})
	}
	if again := create(t, s, Request{Device: "d", Key: "k", Body: []byte("1")}); again.ID != first.ID {
		t.Error("a full device: the key was forgotten")
	}
	if _, _, err := s.Create(t.Context(), Request{Device: "d", Key: "new", Body: []byte("1"), TTL: time.Hour}); !errors.Is(err, ErrDeviceFull) {
		t.Errorf("a full device: %v", err)
	}
	// Concurrent first uses of one key.
	ids := make(chan string, 20)
	for range 20 {
		all.Go(func() {
			c, _, err := s.Create(t.Context(), Request{Device: "f", Key: "race", Body: []byte("1"), TTL: time.Hour})
			if err != nil && !errors.Is(err, ErrDeviceFull) {
				t.Error(err)
			} else if err == nil {
				ids <- c.ID
			}
		})
	}
	all.Wait()
	close(ids)
	id := <-ids
	for other := range ids {
		if other != id {
			t.Error("one key made two commands")
		}
	}
	if n := s.Counts().Unfinished; n != 5 {
		t.Errorf("%d unfinished", n)
	}
}

func TestBounds(t *testing.T) {
	s := openNew(t, Options{MaxUnfinished: 2, MaxBytes: 10})
	try := func(body string) error {
		_, _, err := s.Create(t.Context(), Request{Device: "d", Body: []byte(body), TTL: time.Hour})
		return err
	}
	if err := try(strings.Repeat("1", 11)); !errors.Is(err, ErrFull) {
		t.Errorf("too many bytes: %v", err)
	}
	if err := errors.Join(try("1"), try("1")); err != nil {
		t.Error(err)
	}
	if err := try("1"); !errors.Is(err, ErrFull) {
		t.Errorf("a third: %v", err)
	}
	for _, ttl := range []time.Duration{0, time.Second, MaxTTL + 1} {
		if _, _, err := s.Create(t.Context(), Request{Device: "d", Body: []byte("1"), TTL: ttl}); err == nil {
			t.Errorf("a time to live of %v was taken", ttl)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := try("1"); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestExpiry(t *testing.T) {
	var mu sync.Mutex
	var became []string
	s := openNew(t, Options{Changed: func(c Command) {
		mu.Lock()
		defer mu.Unlock()
		became = append(became, c.Device+" "+string(c.State)+" "+c.ID)
	}})
	c := create(t, s, Request{Device: "d", Body: []byte("1"), TTL: MinTTL})
	later := create(t, s, Request{Device: "d", Body: []byte("1"), TTL: time.Hour})
	if n := len(s.Unfinished("d", time.Now())); n != 2 {
		t.Errorf("%d wait", n)
	}
	if w := s.Unfinished("d", c.Expires); len(w) != 1 || w[0].ID != later.ID {
		t.Errorf("at the time of expiry %v wait", w)
	}
	got, err := s.Wait(t.Context(), c.ID)
	if err != nil || got.State != Expired || got.FinishedAt.Before(got.Expires) || time.Since(got.Expires) > 5*time.Second {
		t.Errorf("%+v %v", got, err)
	}
	s.Sent(c.ID, time.Now())
	until(t, "written", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.entries) == 1 })
	// It was begun in time, and took longer.
	_ = s.Answered("e", say(c.ID, "failed", ""), time.Now(), func() {})
	_ = s.Answered("d", say(c.ID, "succeeded", "1"), time.Now(), func() {})
	until(t, "the late answer", func() bool { return s.Counts().Answers == 1 })
	if got := state(t, s, c.ID); got != Succeeded {
		t.Errorf("after a late answer it is %s", got)
	}
	if n := s.Counts(); n.ByState[Expired] != 0 || n.ByState[Succeeded] != 1 || n.Strays != 1 {
		t.Errorf("%+v", n)
	}
	s.Sent(later.ID, time.Now())
	until(t, "sent", func() bool { return state(t, s, later.ID) == Sent })
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"d expired " + c.ID, "d succeeded " + c.ID, "d sent " + later.ID}; !slices.Equal(became, want) {
		t.Errorf("told of %q", became)
	}
}

// TestRestart: what was told to a sender is there after a crash; here, a copy of the files while the store is open.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, filepath.Join(dir, FileName), Options{})
	queued := create(t, s, Request{Device: "d", Key: "k", Body: []byte("1")})
	sent := create(t, s, Request{Device: "d", Body: []byte("2")})
	over := create(t, s, Request{Device: "d", Body: []byte("3"), TTL: MinTTL})
	s.Sent(sent.ID, time.Now())
	until(t, "sent", func() bool {
		c, err := scan(s.read.QueryRow("SELECT "+columns+" FROM commands WHERE id = ?", sent.ID))
		return err == nil && c.State == Sent
	})
	copied := t.TempDir()
	for _, name := range []string{FileName, FileName + "-wal"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Until(over.Expires)) // a time to live that passes while nothing runs
	again := openAt(t, filepath.Join(copied, FileName), Options{})
	if waiting := again.Unfinished("", time.Now()); len(waiting) != 2 {
		t.Errorf("%v wait", waiting)
	}
	if c, _, err := again.Create(t.Context(), Request{Device: "d", Key: "k", Body: []byte("1"), TTL: time.Hour}); err != nil || c.ID != queued.ID {
		t.Errorf("the key: %+v %v", c, err)
	}
	until(t, "expired", func() bool { return state(t, again, over.ID) == Expired })
	if c := again.Counts(); c.ByState[Queued] != 1 || c.ByState[Sent] != 1 || c.ByState[Expired] != 1 || c.Unfinished != 2 {
		t.Errorf("%+v", c)
	}
}

func TestPruning(t *testing.T) {
	s := openNew(t, Options{MaxFinished: 5})
	var ids []string
	for range 12 {
		c := create(t, s, Request{Device: "d", Body: []byte("1")})
		_ = s.Answered("d", say(c.ID, "succeeded", ""), time.Now(), func() {})
		until(t, "finished", func() bool { return state(t, s, c.ID) == Succeeded })
		ids = append(ids, c.ID)
	}
	until(t, "pruned", func() bool { s.poke(); return s.Counts().ByState[Succeeded] == 5 })
	if _, err := s.Get(t.Context(), ids[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("the oldest: %v", err)
	}
	if got := state(t, s, ids[11]); got != Succeeded {
		t.Errorf("the latest is %s", got)
	}
}

func TestForeignDatabases(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("no database: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none", FileName), Options{}); err == nil {
		t.Error("a directory that is not there")
	}
	s := openNew(t, Options{})
	older := schema()
	older.Migrations = nil
	if err := older.Migrate(context.Background(), s.conn); !errors.Is(err, sqlite.ErrNewer) {
		t.Errorf("newer: %v", err)
	}
}

func TestIDs(t *testing.T) {
	last := ""
	for i := range 100 {
		id := NewID(time.UnixMilli(1727712000000 + int64(i)))
		if !ValidID(id) || id <= last || id[14] != '8' || uuid.MustParse(id).Variant() != uuid.RFC4122 {
			t.Errorf("%s after %s", id, last)
		}
		last = id
	}
	for _, id := range []string{"", uuid.NewString(), strings.ToUpper(last), "{" + last + "}", "urn:uuid:" + last} {
		if ValidID(id) {
			t.Errorf("%q is no id", id)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), FileName), Options{MaxPerDevice: 1 << 30, MaxUnfinished: 1 << 30, MaxBytes: 1 << 40})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := s.Create(context.Background(), Request{Device: "d", Body: []byte(`{"a":1}`), TTL: time.Hour}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestAnswersAreBoundedWhileNothingIsStored: a database that fails must not have answers pile up in memory.
func TestAnswersAreBoundedWhileNothingIsStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	s := openAt(t, path, Options{})
	other, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Exec("DROP TABLE commands"); err != nil {
		t.Fatal(err)
	}
	var stored atomic.Int64
	answer := say(NewID(time.Now()), "succeeded", `"`+strings.Repeat("x", MaxResult)+`"`)
	taken := 0
	for ; taken < 10000 && s.HasRoom(len(answer)); taken++ {
		if err := s.Answered("d", slices.Clone(answer), time.Now(), func() { stored.Add(1) }); err != nil {
			t.Fatal(err)
		}
		if taken%16 == 0 { // have it taken out of the inbox
			until(t, "received", func() bool { s.inboxMu.Lock(); defer s.inboxMu.Unlock(); return len(s.inbox) == 0 })
		}
	}
	if most := maxInboxBytes / MaxResult; taken > most {
		t.Errorf("%d answers of %d bytes were taken", taken, len(answer))
	}
	if err := s.Answered("d", answer, time.Now(), func() {}); !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
	if n := stored.Load(); n != 0 {
		t.Errorf("%d were said to be stored", n)
	}
	if _, err := other.Exec(strings.Replace(commands, "PRAGMA", "-- PRAGMA", 1)); err != nil {
		t.Fatal(err)
	}
	until(t, "stored", func() bool { return int(stored.Load()) == taken })
	if !s.HasRoom(len(answer)) {
		t.Error("no room afterwards")
	}
}

// TestAnswersWhileNothingCanBeStored: while the database fails, answers are taken up to a bound, and none of those that
// were taken is lost.
func TestAnswersWhileNothingCanBeStored(t *testing.T) {
	s := openNew(t, Options{})
	first := create(t, s, Request{Device: "d", Body: []byte("1"), TTL: MinTTL})
	last := create(t, s, Request{Device: "d", Body: []byte("1"), TTL: MinTTL})
	until(t, "expired", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.entries) == 0 })
	exec := func(statement string) {
		t.Helper()
		if _, err := s.read.ExecContext(t.Context(), "PRAGMA query_only = false; "+statement+"; PRAGMA query_only = true"); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TRIGGER full BEFORE UPDATE ON commands BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
	var taken int
	var stored atomic.Int64
	answer := func(id string) {
		t.Helper()
		taken++
		if err := s.Answered("d", say(id, "succeeded", "1"), time.Now(), func() { stored.Add(1) }); err != nil {
			t.Fatal(err)
		}
	}
	answer(first.ID)
	until(t, "the database fails", func() bool { return s.Counts().Err != nil })
	for s.HasRoom(maxInboxBytes/maxInbox) && taken <= 4*maxInbox {
		answer(NewID(time.Now())) // of a command that is not known any more
		if taken%100 == 0 {
			time.Sleep(time.Millisecond)
		}
		if taken == maxInbox/2 {
			answer(last.ID)
		}
	}
	if taken > maxInbox {
		t.Errorf("%d answers were taken", taken)
	}
	exec("DROP TRIGGER full")
	until(t, "everything is stored", func() bool { return stored.Load() == int64(taken) })
	if got := state(t, s, first.ID); got != Succeeded {
		t.Errorf("the first is %s", got)
	}
	if got := state(t, s, last.ID); taken > maxInbox/2 && got != Succeeded {
		t.Errorf("the last is %s", got)
	}
}
