package order

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func give(t *testing.T, dir string, o Order) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- Give(context.Background(), dir, o) }()
	return done
}

// take takes orders until one was found.
func take(t *testing.T, dir string, now time.Time, do func(Order) error) {
	t.Helper()
	for taken, end := false, time.Now().Add(20*time.Second); !taken; {
		if time.Now().After(end) {
			t.Fatal("no order came")
		}
		err := Take(context.Background(), dir, now, func(o Order) error { taken = true; return do(o) })
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnOrderIsCarriedOutOnce(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), DirName), time.Now()
	for range 2 {
		if err := MakeDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	done := give(t, dir, Order{Kind: Release, Names: []string{"a", "b"}, At: now})
	take(t, dir, now, func(o Order) error {
		if o.Kind != Release || !slices.Equal(o.Names, []string{"a", "b"}) {
			t.Errorf("%+v", o)
		}
		return nil
	})
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := Take(context.Background(), dir, now, func(Order) error { return errors.New("once more") }); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestWhoGaveItHearsWhyNot(t *testing.T) {
	dir := t.TempDir()
	done := give(t, dir, Order{Kind: ClearRetained, Names: []string{"x"}, At: time.Now()})
	take(t, dir, time.Now(), func(Order) error { return errors.New("no gated topic") })
	if err := <-done; err == nil || err.Error() != "no gated topic" {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

// Not yet means a minute, not for ever.
func TestNotYet(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	done := give(t, dir, Order{Kind: Release, Names: []string{"x"}, At: now})
	notYet := func(Order) error { return ErrNotYet }
	take(t, dir, now, notYet)
	take(t, dir, now.Add(Patience-time.Second), notYet)
	select {
	case err := <-done:
		t.Fatal("given up too early:", err)
	default:
	}
	take(t, dir, now.Add(Patience), notYet)
	if err := <-done; err == nil {
		t.Error("an order that could not be carried out was")
	}
}

func TestNobodyTakesIt(t *testing.T) {
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer stop()
	dir := t.TempDir()
	if err := Give(ctx, dir, Order{Kind: Release, At: time.Now()}); !errors.Is(err, ErrWaiting) {
		t.Error(err)
	}
	taken := 0
	err := Take(context.Background(), dir, time.Now(), func(Order) error { taken++; return nil })
	if err != nil || taken != 1 {
		t.Errorf("%d orders, %v", taken, err)
	}
}

// What is no order is refused, and does not come again.
func TestWhatIsNoOrder(t *testing.T) {
	for name, text := range map[string]string{
		"empty":     "",
		"kind":      `{"kind":"format"}`,
		"member":    `{"kind":"release","names":[],"force":true}`,
		"long":      `{"kind":"release","names":["` + strings.Repeat("x", maxBytes) + `"]}`,
		"too many":  `{"kind":"release","names":[` + strings.Repeat(`"x",`, MaxNames) + `"x"]}`,
		"directory": "dir",
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "1"+suffix)
		if text == "dir" {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := Take(context.Background(), dir, time.Now(), func(Order) error { t.Errorf("%s was carried out", name); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if why, err := os.ReadFile(path + refused); err != nil || len(why) < 5 {
			t.Errorf("%s: %q, %v", name, why, err)
		}
	}
	if err := Take(context.Background(), filepath.Join(t.TempDir(), "none"), time.Now(), nil); err != nil {
		t.Error(err)
	}
}

// What is no order neither blocks the gateway nor holds back the orders behind it.
func TestWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "1.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "2.json", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "3.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "4.json"), []byte(`{"kind":"release","names":["a"],"at":"2026-01-01T00:00:00Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	taken := 0
	err := Take(t.Context(), dir, time.Now(), func(o Order) error { taken++; return nil })
	if taken != 1 {
		t.Errorf("%d orders taken", taken)
	}
	if err == nil {
		t.Error("a directory that cannot be removed is not reported")
	}
	why, err := os.ReadFile(filepath.Join(dir, "3.json"+refused))
	if err != nil || strings.Contains(string(why), "root:") {
		t.Errorf("%q, %v", why, err)
	}
}
