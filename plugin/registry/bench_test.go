package registry

import (
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "devices.db")
			ids := fillDatabase(b, path, n)
			r, err := Open(path, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if r.Lookup(ids[i*7919%n]) == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}

// BenchmarkMillion measures a registry of 1,000,000 devices; run it with -benchtime 1x.
func BenchmarkMillion(b *testing.B) { benchmarkMillion(b, nil) }

// BenchmarkMillionEncrypted is the same with secrets encrypted at rest.
func BenchmarkMillionEncrypted(b *testing.B) {
	key, err := NewKey(GenerateKey())
	if err != nil {
		b.Fatal(err)
	}
	benchmarkMillion(b, key)
}

func benchmarkMillion(b *testing.B, key *Key) {
	const n = 1_000_000
	path := filepath.Join(b.TempDir(), "devices.db")
	ids := fillDatabase(b, path, n)
	if key != nil {
		start := time.Now()
		if _, err := openStore(b, path, WithKey(key)).Recrypt(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/encrypt")
		runtime.GC()
	}
	other := openDatabase(b, path)
	log := slog.New(slog.DiscardHandler)
	for b.Loop() {
		before := heap()
		start := time.Now()
		r, err := Open(path, log, WithKey(key))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/load")
		b.ReportMetric(float64(resident(b, "VmHWM"))/1e6, "MB-peak")
		b.ReportMetric(float64(heap()-before)/1e6, "MB-heap")
		b.ReportMetric(float64(resident(b, "VmRSS"))/1e6, "MB-resident")

		const changes = 20
		var sum, worst time.Duration
		for i := range changes {
			id, secret := ids[i*7919%n], fmt.Sprintf("changed %d", i)
			start := time.Now()
			execute(b, other, "INSERT OR REPLACE INTO devices VALUES (?, ?, 0)", string(id), secret)
			for string(r.Lookup(id).Secrets[0]) != secret {
				time.Sleep(100 * time.Microsecond)
			}
			took := time.Since(start)
			sum, worst = sum+took, max(worst, took)
		}
		b.ReportMetric(float64(sum.Milliseconds())/changes, "ms/change")
		b.ReportMetric(float64(worst.Milliseconds()), "ms-worst/change")

		// The same in the source alone, without the wait for the next poll.
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		s := &source{path: path, busy: openBusy, log: log, key: key}
		q := &Registry{log: log, source: s, removed: map[string]uint32{}}
		q.current.Store(r.current.Load())
		q.serials = n
		start = time.Now()
		if err := q.refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/full-reload")
		execute(b, other, "INSERT OR REPLACE INTO devices VALUES (?, ?, 0)", string(ids[0]), "once more")
		start = time.Now()
		if err := q.refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(start).Microseconds()), "us/refresh")
		if string(q.Lookup(ids[0]).Secrets[0]) != "once more" {
			b.Fatal("change not seen")
		}
		start = time.Now()
		for range 1000 {
			if err := q.refresh(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "us/idle-poll")
		_ = s.close()
		runtime.KeepAlive(r)
		runtime.KeepAlive(ids)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// resident returns a figure of /proc/self/status in bytes; for the whole process, ids of the benchmark included.
func resident(b *testing.B, field string) int64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip(err)
	}
	var kB int64
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			_, _ = fmt.Sscan(rest, &kB)
		}
	}
	return kB * 1024
}

// fillDatabase makes a database as the Python gateway does, with n devices of 64 hexadecimal digits.
func fillDatabase(tb testing.TB, path string, n int) [][]byte {
	tb.Helper()
	db := pythonDatabase(tb, path)
	defer func() { _ = db.Close() }()
	execute(tb, db, `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
		INSERT INTO devices SELECT printf('sensor_%07d', i), lower(hex(randomblob(32))), 1727712000 FROM n`, n)
	ids := make([][]byte, n)
	for i := range ids {
		ids[i] = fmt.Appendf(nil, "sensor_%07d", i)
	}
	return ids
}

// pythonDatabase makes a database as the Python gateway does.
func pythonDatabase(tb testing.TB, path string) *sql.DB {
	tb.Helper()
	db := openDatabase(tb, path)
	execute(tb, db, `CREATE TABLE devices(device_id TEXT PRIMARY KEY, shared_secret TEXT NOT NULL, created_at INTEGER NOT NULL)`)
	return db
}

// openDatabase opens a database as another program would.
func openDatabase(tb testing.TB, path string) *sql.DB {
	tb.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

func execute(tb testing.TB, db *sql.DB, statement string, args ...any) {
	tb.Helper()
	if _, err := db.Exec(statement, args...); err != nil {
		tb.Fatalf("%s: %v", statement, err)
	}
}
