package fleetstate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestState(t *testing.T) {
	dir := t.TempDir()
	if s, err := Load(dir); s != nil || err != nil {
		t.Fatal(s, err)
	}
	want := State{Since: time.Unix(1727712000, 0).UTC(), Why: "NATS is not connected\x07"}
	if err := Save(dir, &want); err != nil {
		t.Fatal(err)
	}
	if s, err := Load(dir); err != nil || *s != want {
		t.Errorf("%v %v", s, err)
	}
	long := State{Why: strings.Repeat("x", 5000)}
	if err := Save(dir, &long); err != nil || len(long.Why) != 5000 {
		t.Fatal(err)
	}
	if s, err := Load(dir); err != nil || len(s.Why) != maxWhy {
		t.Errorf("%v %v", s, err)
	}
	for range 2 {
		if err := Save(dir, nil); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := Load(dir); s != nil || err != nil {
		t.Error(s, err)
	}
	for _, bad := range []string{"{", strings.Repeat(" ", maxFile+1)} {
		if err := os.WriteFile(filepath.Join(dir, FileName), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil {
			t.Errorf("%.10q is taken", bad)
		}
	}
}
