package writable

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		c := New(slog.New(slog.NewTextHandler(&logged, nil)))
		var full, running, panics atomic.Bool
		hang := make(chan struct{})
		asked := 0
		c.Add("a", func(context.Context) error {
			if full.Load() {
				return errors.New("no space left")
			}
			return nil
		})
		c.Add("b", func(context.Context) error {
			if running.Swap(true) {
				t.Error("asked twice at once")
			}
			defer running.Store(false)
			if asked++; asked == 3 {
				<-hang // deaf to the context, as a disk is
			}
			return nil
		})
		c.Add("c", func(ctx context.Context) error {
			if panics.Load() {
				panic("x")
			}
			return nil
		})
		c.Start()
		want := func(after time.Duration, want ...string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := c.Wrong(); strings.Join(got, "; ") != strings.Join(want, "; ") {
				t.Errorf("%q, want %q", got, want)
			}
		}
		want(100 * time.Millisecond)
		full.Store(true)
		want(Interval, "a cannot be written: no space left")
		want(Interval+Limit, "a cannot be written: no space left", "b has not answered for 3 s")
		full.Store(false)
		close(hang)
		want(Interval)
		panics.Store(true)
		want(Interval, "c cannot be written: c: the check panicked")
		panics.Store(false)
		want(Interval)
		c.Stop()
		for _, line := range []string{`a store cannot be written" store=a error="no space left"`, `a store can be written again" store=a`} {
			if !strings.Contains(logged.String(), line) {
				t.Errorf("not logged: %s\n%s", line, logged.String())
			}
		}
	})
}
