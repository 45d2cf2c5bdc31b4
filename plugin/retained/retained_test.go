package retained

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"mosquitto-bouncer/plugin/linefile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openMemory(t *testing.T, path string) *Memory {
	t.Helper()
	m, err := Open(path, func(topic []byte) bool { return !strings.Contains(string(topic), "removed") }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func closeMemory(t *testing.T, m *Memory) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

var a, b = []byte("device/a/data"), []byte("device/b/data")

func TestTheLastOfEachTopicIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	m := openMemory(t, path)
	m.Note(a, []byte("1"))
	m.Note(a, []byte("2"))
	m.Note(b, []byte("3"))
	m.Note([]byte("device/removed/data"), []byte("4"))
	check := func(when string) {
		t.Helper()
		if m.Verified(a, []byte("1")) || !m.Verified(a, []byte("2")) || !m.Verified(b, []byte("3")) || m.Verified(b, []byte("2")) ||
			m.Verified([]byte("device/c/data"), []byte("3")) {
			t.Error(when)
		}
	}
	check("at once")
	closeMemory(t, m)
	m = openMemory(t, path)
	check("after a restart")
	if m.Len() != 2 {
		t.Errorf("%d topics; of a device that was removed meanwhile nothing is remembered", m.Len())
	}
	m.Forget(b)
	if m.Verified(b, []byte("3")) {
		t.Error("forgotten")
	}
	closeMemory(t, m)
	m = openMemory(t, path)
	if m.Verified(b, []byte("3")) || !m.Verified(a, []byte("2")) {
		t.Error("forgotten for good")
	}
	m.Forget(a)
	m.Note(a, []byte("5"))
	closeMemory(t, m)
	if m = openMemory(t, path); !m.Verified(a, []byte("5")) {
		t.Error("noted after it was forgotten")
	}
}

func TestDamageCostsWhatItHits(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	m := openMemory(t, path)
	m.Note(a, []byte("1"))
	closeMemory(t, m)
	m = openMemory(t, path)
	m.Note(b, []byte("2"))
	closeMemory(t, m)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(header)+3] ^= 1
	if err := os.WriteFile(path, text, 0o640); err != nil {
		t.Fatal(err)
	}
	if m = openMemory(t, path); m.Verified(a, []byte("1")) || !m.Verified(b, []byte("2")) {
		t.Error("damage")
	}
}

func TestBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	m := openMemory(t, path)
	for i := range MaxTopics + 10 {
		m.Note(fmt.Appendf(nil, "device/%d/data", i), []byte("1"))
	}
	m.Note([]byte("device/\n/data"), []byte("1"))
	if m.Len() != MaxTopics {
		t.Errorf("%d topics", m.Len())
	}
	// One that is known is noted all the same, and one that is forgotten leaves room.
	m.Note([]byte("device/0/data"), []byte("2"))
	if !m.Verified([]byte("device/0/data"), []byte("2")) {
		t.Error("a known topic was not noted")
	}
	m.loop.Close(0) // Close does not wait so long for a slow disk
	if m = openMemory(t, path); m.Len() != MaxTopics || !m.Verified([]byte("device/0/data"), []byte("2")) {
		t.Errorf("%d topics after a restart", m.Len())
	}
	m = openMemory(t, filepath.Join(t.TempDir(), FileName))
	if m.Note([]byte(strings.Repeat("x", MaxTopic+1)), []byte("1")); m.Len() != 0 {
		t.Error("a topic without bound was noted")
	}
}

// Messages without end on few topics take no more disk than the topics.
func TestTheFileIsCompacted(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	m := openMemory(t, path)
	closeMemory(t, m) // its goroutine, for which this test stands in
	var err error
	if m.file, err = linefile.Open(path, header, func([]byte) {}); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		for d := range 1000 {
			m.Note(fmt.Appendf(nil, "device/%d/data", d), fmt.Append(nil, i))
		}
		m.write(false)
	}
	if m.file.Size() > 3*compactBeyond {
		t.Errorf("%d bytes for a thousand topics", m.file.Size())
	}
	_ = m.file.Close()
	if m = openMemory(t, path); m.Len() != 1000 || !m.Verified([]byte("device/7/data"), []byte("59")) {
		t.Errorf("%d topics", m.Len())
	}
}

func TestVerifiedTakesNoMemory(t *testing.T) {
	m := openMemory(t, filepath.Join(t.TempDir(), FileName))
	payload := make([]byte, 300)
	m.Note(a, payload)
	if n := testing.AllocsPerRun(1000, func() { m.Verified(a, payload); m.Note(a, payload) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkVerified(bench *testing.B) {
	m, err := Open(filepath.Join(bench.TempDir(), FileName), func([]byte) bool { return true }, slog.New(slog.DiscardHandler))
	if err != nil {
		bench.Fatal(err)
	}
	defer m.Close()
	payload := make([]byte, 270)
	m.Note(a, payload)
	for bench.Loop() {
		if !m.Verified(a, payload) {
			bench.Fatal("not verified")
		}
	}
}
