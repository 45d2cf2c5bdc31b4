package loop

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var rounds []string // the goroutine's
		next := []time.Duration{0, 3 * time.Second, 0}
		l := New(slog.Default(), "tests", func(stopping bool) time.Duration {
			rounds = append(rounds, fmt.Sprintf("%v %v", time.Since(began), stopping))
			return next[min(len(rounds), len(next))-1]
		})
		l.Start()
		time.Sleep(10 * time.Second)
		l.Wake() // at 10 s; the next one by itself at 13 s
		time.Sleep(10 * time.Second)
		if !l.Close(0) || !l.Close(time.Second) {
			t.Error("not ended")
		}
		if got, want := strings.Join(rounds, ", "), "0s false, 10s false, 13s false, 20s true"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		<-l.Stopping()
	})
}

// A wake that comes during a round is not lost.
func TestWakeDuringARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rounds := 0
		var l *Loop
		l = New(slog.Default(), "tests", func(bool) time.Duration {
			if rounds++; rounds == 1 {
				l.Wake()
				l.Wake()
			}
			return 0
		})
		l.Start()
		synctest.Wait()
		if rounds != 2 {
			t.Errorf("%d rounds, want 2", rounds)
		}
		l.Close(0)
	})
}

func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		rounds := 0
		l := New(slog.New(slog.NewTextHandler(&logged, nil)), "tests", func(bool) time.Duration {
			if rounds++; rounds == 1 {
				panic("oops")
			}
			return 0
		})
		l.Start()
		time.Sleep(afterPanic + time.Millisecond)
		synctest.Wait()
		if rounds != 2 || !strings.Contains(logged.String(), "where=tests panic=oops") {
			t.Errorf("%d rounds: %s", rounds, logged.String())
		}
		l.Close(0)
	})
}

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := make(chan struct{})
		l := New(slog.Default(), "tests", func(stopping bool) time.Duration {
			if stopping {
				<-disk
			}
			return 0
		})
		l.Start()
		if l.Close(2 * time.Second) {
			t.Error("ended")
		}
		close(disk)
		if !l.Close(0) {
			t.Error("not ended")
		}
	})
}
