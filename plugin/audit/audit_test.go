package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, o Options) *Log {
	t.Helper()
	l, err := Open(o, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	return l
}

func closeLog(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(5 * time.Second); err != nil {
		t.Error(err)
	}
}

// read returns the records of a file; each line must be a JSON object.
func read(t *testing.T, file string) (records []Record) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(content) {
		var r Record
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&r); err != nil || r.Time.IsZero() || r.Event == "" {
			t.Fatalf("%q: %v", line, err)
		}
		records = append(records, r)
	}
	return records
}

func within(t *testing.T, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !met(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestRecords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, Options{File: file})
	l.Add(Record{Event: Start, Version: "1"})
	l.Add(Record{Event: Denied, Device: "a\nb", Topic: strings.Repeat("x", 1000), Reason: "replay"})
	within(t, "written without a close", func() bool { return len(read(t, file)) == 2 })
	closeLog(t, l)
	got := read(t, file)
	if got[1].Device != "a\nb" || len(got[1].Topic) != maxText || time.Since(got[0].Time) > time.Minute {
		t.Errorf("%+v", got)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm()&^0o640 != 0 {
		t.Errorf("%v, %v", info, err)
	}
	// It is appended to.
	l = open(t, Options{File: file})
	closeLog(t, l)
	if len(read(t, file)) != 2 {
		t.Error("what was there is gone")
	}
}

func TestDenialsAreSampledAndCounted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, Options{File: file})
	now := time.Now()
	for i := range 10_000 {
		reason := []string{"replay", "stale"}[i%2]
		if l.Sample(now, reason) {
			l.Add(Record{Event: Denied, Reason: reason})
		}
	}
	closeLog(t, l)
	written, counted := 0, 0
	for _, r := range read(t, file) {
		switch r.Event {
		case Denied:
			written++
		case Suppressed:
			counted += r.Count
			if r.Reasons["replay"]+r.Reasons["stale"] != r.Count {
				t.Errorf("%+v", r)
			}
		}
	}
	if written != denialsBurst || written+counted != 10_000 {
		t.Errorf("%d written, %d counted", written, counted)
	}
}

// TestNeverWaits: with a disk that does not answer, records are lost and counted.
func TestNeverWaits(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, Options{File: file})
	hanging, hang := make(chan struct{}), make(chan struct{})
	l.call(func() { close(hanging); <-hang })
	<-hanging
	for range 3 * maxQueued {
		l.Add(Record{Event: Registry})
	}
	if err := l.Close(10 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "not waiting any longer") {
		t.Error(err)
	}
	close(hang)
	closeLog(t, l)
	written, lost := 0, 0
	for _, r := range read(t, file) {
		if r.Event == Lost {
			lost += r.Count
		} else {
			written++
		}
	}
	if lost == 0 || written+lost != 3*maxQueued {
		t.Errorf("%d written, %d lost", written, lost)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "audit.jsonl")
	l := open(t, Options{File: file, MaxBytes: 2000, Keep: 2})
	const n = 100
	for i := range n {
		l.Add(Record{Event: Registry, Device: fmt.Sprint(i)})
	}
	closeLog(t, l)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	next := n
	for _, name := range []string{file, file + ".1", file + ".2"} {
		if info, err := os.Stat(name); err != nil || info.Size() > 2000 {
			t.Errorf("%v, %v", info, err)
		}
		records := read(t, name)
		for i := len(records) - 1; i >= 0; i-- {
			if next--; records[i].Device != fmt.Sprint(next) {
				t.Fatalf("%s: %+v, want %d", name, records[i], next)
			}
		}
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "audit.jsonl")
	l := open(t, Options{File: file})
	l.Add(Record{Event: Start})
	within(t, "written", func() bool { return len(read(t, file)) == 1 })
	if err := os.Rename(file, file+".old"); err != nil {
		t.Fatal(err)
	}
	l.Reopen(Options{File: file})
	within(t, "made again", func() bool { _, err := os.Stat(file); return err == nil })
	l.Add(Record{Event: Stop})
	within(t, "written", func() bool { return len(read(t, file)) == 1 })
	// Where that cannot be, the old one is written on.
	l.Reopen(Options{File: filepath.Join(dir, "none", "audit.jsonl")})
	l.Add(Record{Event: Reload})
	within(t, "written on", func() bool { return len(read(t, file)) == 2 })
}

func TestOpenRefuses(t *testing.T) {
	for _, file := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none", "x"), "/dev/null"} {
		if l, err := Open(Options{File: file}, slog.New(slog.DiscardHandler)); err == nil {
			closeLog(t, l)
			t.Errorf("%s: opened", file)
		} else if !strings.Contains(err.Error(), file) {
			t.Error(err)
		}
	}
}

// TestFullDisk: /dev/full refuses every write, as a full disk does.
func TestFullDisk(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	var said bytes.Buffer
	l, err := Open(Options{File: file}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	l.call(func() {
		defer close(done)
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		_ = l.file.Close()
		l.file = full
		l.written.Reset(full)
	})
	<-done
	l.Add(Record{Event: Start})
	within(t, "queue empty", func() bool { return len(l.queue) == 0 })
	l.Reopen(Options{File: file})
	reopened := make(chan struct{})
	l.call(func() { close(reopened) })
	<-reopened
	l.Add(Record{Event: Stop})
	closeLog(t, l)
	events := ""
	for _, r := range read(t, file) {
		events += r.Event + " "
	}
	if !strings.Contains(events, Stop) || !strings.Contains(events, Lost) {
		t.Error(events)
	}
	if strings.Count(said.String(), "cannot be written") != 1 || strings.Count(said.String(), "written again") != 1 {
		t.Error(said.String())
	}
}

// TestEveryLostRecordIsCounted: those that wait in the buffer for a disk that is full too, and what it has taken of a line
// spoils no later one.
func TestEveryLostRecordIsCounted(t *testing.T) {
	const n = 50
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, Options{File: file})
	done := make(chan struct{})
	l.call(func() { // in one step, so that no record is flushed before the others are written
		defer close(done)
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := l.file.WriteString(`{"time":"2`); err != nil { // as a disk leaves it that fills within a line
			t.Error(err)
		}
		good := l.file
		l.file = full
		l.written.Reset(full)
		for range n {
			l.write(&Record{Event: Registry})
		}
		l.flush()
		l.file = good
		l.report(errors.New("the disk has room again")) // takes up the good file
		_ = full.Close()
	})
	<-done
	l.Add(Record{Event: Stop})
	closeLog(t, l)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	torn, rest, _ := bytes.Cut(content, []byte("\n"))
	if string(torn) != `{"time":"2` {
		t.Errorf("%q", torn)
	}
	if err := os.WriteFile(file, rest, 0o600); err != nil {
		t.Fatal(err)
	}
	lost, stops := 0, 0
	for _, r := range read(t, file) {
		switch r.Event {
		case Lost:
			lost += r.Count
		case Stop:
			stops++
		}
	}
	if lost != n || stops != 1 {
		t.Errorf("%d lost, %d written, want %d and 1", lost, stops, n)
	}
}

// TestRotationFails: a log that cannot be rotated is continued, with one line about it, and no record counts as lost.
func TestRotationFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.MkdirAll(filepath.Join(file+".1", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	l, err := Open(Options{File: file, MaxBytes: 500, Keep: 1}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	const n = 100
	for range n {
		l.Add(Record{Event: Registry, Device: "sensor_001"})
	}
	closeLog(t, l)
	for _, r := range read(t, file) {
		if r.Event != Registry {
			t.Errorf("%+v", r)
		}
	}
	if got := len(read(t, file)); got != n {
		t.Errorf("%d records, want %d", got, n)
	}
	if lines := strings.Count(said.String(), "\n"); lines != 1 {
		t.Errorf("%d lines in the log: %.500s", lines, said.String())
	}
}

func TestNil(t *testing.T) {
	var l *Log
	l.Add(Record{})
	l.Reopen(Options{})
	if l.Sample(time.Now(), "x") || l.Close(0) != nil {
		t.Error("nil records something")
	}
}
