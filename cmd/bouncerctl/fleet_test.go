package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childrenCPU is the processor time of all commands that have ended.
func childrenCPU(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// TestFleet: 100,000 devices are imported in under 60 seconds and listed in under 2. Where other programs take the
// processors, it is the command's own processor time that counts.
func TestFleet(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	dir := newDir(t)
	var b strings.Builder
	b.WriteString("id,secret\n")
	for i := range n {
		fmt.Fprintf(&b, "sensor_%06d,%064x\n", i, i)
	}
	file := filepath.Join(t.TempDir(), "fleet.csv")
	writeFile(t, file, b.String())
	timed := func(what string, limit time.Duration, args ...string) string {
		t.Helper()
		start, before := time.Now(), childrenCPU(t)
		got := device(t, dir, args[0], args[1:]...)
		took := min(time.Since(start), childrenCPU(t)-before)
		t.Logf("%s: %v", what, took)
		if took > limit {
			t.Errorf("%s took %v, the limit is %v", what, took, limit)
		}
		return got
	}
	timed("import", time.Minute, "import", file)
	for _, format := range []string{"--json", "--csv", "--json=false"} {
		got := timed("list "+format, 2*time.Second, "list", format)
		if lines := strings.Count(got, "sensor_"); lines != n {
			t.Errorf("%d devices are listed", lines)
		}
	}
}
