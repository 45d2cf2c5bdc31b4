package suspension

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
)

func TestSuspensionOutlivesTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), DirName)
	log := slog.New(slog.DiscardHandler)
	s, devices, err := Open(dir, log)
	if err != nil || len(devices) != 0 {
		t.Fatal(devices, err)
	}
	all := []string{"", "..", "all", "sensor_001"}
	for _, device := range all {
		s.Gone(device, "http://backend/"+device)
	}
	_, devices, err = Open(dir, log)
	if slices.Sort(devices); err != nil || !slices.Equal(devices, all) {
		t.Fatalf("after a restart: %q, %v", devices, err)
	}
	list, err := List(dir)
	if err != nil || len(list) != 4 || list[0].Since.IsZero() || list[0].URL != "http://backend/"+list[0].Device {
		t.Errorf("%+v, %v", list, err)
	}
	var resumed []string
	follow := func() { s.Follow(func(device string) bool { resumed = append(resumed, device); return true }) }
	follow()
	for _, device := range []string{"..", ""} {
		if err := Resume(dir, device); err != nil {
			t.Error(err)
		}
	}
	if err := Resume(dir, "sensor_002"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	follow()
	follow()
	if slices.Sort(resumed); !slices.Equal(resumed, []string{"", ".."}) {
		t.Errorf("resumed %q", resumed)
	}
}
