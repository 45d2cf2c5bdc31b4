package standing

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	const url = "https://backend/{device_id}?token=secret"
	if s, err := Load(dir, url); err != nil || !reflect.DeepEqual(s, State{}) {
		t.Errorf("of nothing: %+v %v", s, err)
	}
	want := State{
		Refusing: true, Status: 401, Since: time.Unix(1e9, 0).UTC(),
		Heard: map[string]time.Time{"sensor_001": time.Unix(1e9, 0).UTC()}, Refused: []string{"sensor_001"},
	}
	for range 2 {
		if err := Save(dir, url, want); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Load(dir, url); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	if s, err := Load(dir, url+"x"); err != nil || s.Refusing {
		t.Errorf("of another URL: %+v %v", s, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil || strings.Contains(string(text), "secret") {
		t.Errorf("%s %v", text, err)
	}
	for _, damaged := range []string{"", "{", strings.Repeat(" ", maxFile+1), "[]"} {
		if err := os.WriteFile(filepath.Join(dir, FileName), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Load(dir, url); err == nil || s.Refusing {
			t.Errorf("%.10q: %+v", damaged, s)
		}
	}
}
