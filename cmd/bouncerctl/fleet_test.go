package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFleet: 100,000 devices are imported in under 60 seconds and listed in under 2.
func TestFleet(t *testing.T) {
	const n = 100_000
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
		start := time.Now()
		got := device(t, dir, args[0], args[1:]...)
		took := time.Since(start)
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
