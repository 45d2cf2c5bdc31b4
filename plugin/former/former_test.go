package former

import (
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mosquitto-bouncer/plugin/linefile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fleet is what is registered: ids and their serials.
type fleet map[string]uint32

func (f fleet) Serial(id []byte) (uint32, bool) { serial, ok := f[string(id)]; return serial, ok }
func (f fleet) Serials() (n uint32) {
	for _, serial := range f {
		n = max(n, serial+1)
	}
	return n
}
func (f fleet) IDs() iter.Seq2[string, uint32] { return maps.All(f) }

func openSet(t *testing.T, path string, f fleet) *Set {
	t.Helper()
	s, err := Open(path, f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func closeSet(t *testing.T, s *Set) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is in the file and not registered was removed, by any program at any time, and stays so until it is released.
func TestRemovedStaysSoOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	s := openSet(t, path, fleet{"a": 0, "b": 1})
	if s.Has([]byte("a"), false) || s.Has([]byte("stranger"), false) || !s.Complete() {
		t.Error("no device was removed yet")
	}
	s.Registered([]string{"c"}) // and removed while the gateway is away
	closeSet(t, s)
	for range 3 {
		s = openSet(t, path, fleet{"b": 0})
		if !s.Has([]byte("a"), false) || !s.Has([]byte("c"), false) || s.Has([]byte("stranger"), false) || s.Len() != 2 {
			t.Fatal("what was removed is not known")
		}
		closeSet(t, s)
	}
	s = openSet(t, path, fleet{"b": 0})
	if err := s.Release([]string{"a"}); err != nil {
		t.Fatal(err)
	}
	if s.Has([]byte("a"), false) || s.Has([]byte("a"), true) || !s.Has([]byte("c"), false) {
		t.Error("a was released, c was not")
	}
	closeSet(t, s)
	s = openSet(t, path, fleet{"b": 0})
	if s.Has([]byte("a"), false) || !s.Has([]byte("c"), false) {
		t.Error("a was released for good")
	}
	// Registered again, it is confined again when it is removed.
	s.Registered([]string{"a"})
	if !s.Has([]byte("a"), true) {
		t.Error("a was registered and removed since")
	}
	closeSet(t, s)
	s = openSet(t, path, fleet{"b": 0})
	if !s.Has([]byte("a"), false) {
		t.Error("a was registered again and removed")
	}
}

func TestReleasedSinceTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	s := openSet(t, path, fleet{"a": 0})
	if !s.Has([]byte("a"), true) {
		t.Error("removed since the start")
	}
	if err := s.Release([]string{"a"}); err != nil {
		t.Fatal(err)
	}
	if s.Has([]byte("a"), true) {
		t.Error("released")
	}
	s.Registered([]string{"a"})
	if !s.Has([]byte("a"), true) {
		t.Error("registered again and removed again")
	}
}

func TestReleaseAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	closeSet(t, openSet(t, path, fleet{"a": 0, "b": 1, "c": 2}))
	damage(t, path)
	s := openSet(t, path, fleet{"c": 0, "d": 1})
	if s.Complete() {
		t.Fatal("the file is damaged")
	}
	err := s.ReleaseAll(maps.Keys(fleet{"c": 0, "d": 1}), maps.Keys(fleet{"e": 0}))
	if err != nil {
		t.Fatal(err)
	}
	if !s.Complete() || s.Len() != 0 || s.Has([]byte("e"), true) || s.Has([]byte("b"), false) {
		t.Error("not all is released")
	}
	closeSet(t, s)
	if s = openSet(t, path, fleet{"d": 0}); !s.Complete() || !s.Has([]byte("c"), false) || s.Len() != 1 {
		t.Error("who was registered then, and is not now, was removed since")
	}
}

// damage changes a letter of the first id in the file.
func damage(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(header)+1] ^= 1
	if err := os.WriteFile(path, text, 0o640); err != nil {
		t.Fatal(err)
	}
}

// Where an id may be missing, the Set says so, also after it has rewritten the file.
func TestDamageIsNotForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	closeSet(t, openSet(t, path, fleet{"a": 0}))
	damage(t, path)
	s := openSet(t, path, fleet{"b": 0})
	if s.Complete() {
		t.Fatal("an id was damaged")
	}
	closeSet(t, s)
	f, err := linefile.Open(path, header, func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	s = &Set{file: f, path: path, log: slog.New(slog.DiscardHandler)}
	if err := s.compact(); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if openSet(t, path, fleet{"b": 0}).Complete() {
		t.Error("the damage is forgotten")
	}
}

func TestTooManyRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	f := fleet{}
	for i := range uint32(MaxIDs) + 1 {
		f[fmt.Sprintf("sensor_%d", i)] = i
	}
	closeSet(t, openSet(t, path, f))
	s := openSet(t, path, fleet{"sensor_0": 0})
	if !s.Complete() || s.Len() != MaxIDs {
		t.Errorf("%d ids, complete: %v", s.Len(), s.Complete())
	}
	closeSet(t, s)
	s = openSet(t, path, fleet{})
	if s.Complete() || s.Len() != MaxIDs {
		t.Errorf("%d ids, complete: %v", s.Len(), s.Complete())
	}
}

// Adding and removing without end takes no more disk than the ids that count.
func TestTheFileIsCompacted(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	s := openSet(t, path, fleet{})
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = fmt.Sprintf("sensor_%d", i)
	}
	for range 200 {
		s.Registered(ids)
		if err := s.ask(func() {}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 2*compactBeyond {
		t.Errorf("%d bytes for a thousand ids, %v", info.Size(), err)
	}
	closeSet(t, s)
	if s = openSet(t, path, fleet{}); s.Len() != len(ids) {
		t.Errorf("%d ids", s.Len())
	}
}

// A disk that takes nothing is said, tried again, and costs nothing that was noted.
func TestDiskTakesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	s := openSet(t, path, fleet{})
	good := s.file
	broken, err := linefile.Open(filepath.Join(dir, "other"), header, func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	_ = broken.Close() // writing to it fails
	if err := s.ask(func() { s.file = broken }); err != nil {
		t.Fatal(err)
	}
	s.Registered([]string{"a"})
	wait(t, "the fault", func() bool { return s.Err() != nil })
	if err := s.Release([]string{"x"}); err == nil {
		t.Error("released without a word on the disk")
	}
	s.mu.Lock()
	s.file = good
	s.mu.Unlock()
	wait(t, "the end of the fault", func() bool { return s.Err() == nil })
	closeSet(t, s)
	if s = openSet(t, path, fleet{}); !s.Has([]byte("a"), false) {
		t.Error("a was lost")
	}
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("timed out waiting for", what)
		}
	}
}

func TestAnotherFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	if err := os.WriteFile(path, []byte("something else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, fleet{}, slog.Default()); err == nil || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
}

func TestHasTakesNoMemory(t *testing.T) {
	s := openSet(t, filepath.Join(t.TempDir(), FileName), fleet{"a": 0})
	id := []byte("a_client_with_quite_a_long_name_that_is_no_device")
	if n := testing.AllocsPerRun(1000, func() { s.Has(id, false); s.Has(id, true); s.Complete() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
