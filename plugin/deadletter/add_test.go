package deadletter

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// addAtOnce adds letters as many lanes do.
func addAtOnce(tb testing.TB, s *Store, letters []Letter) {
	tb.Helper()
	var lanes sync.WaitGroup
	next := make(chan Letter)
	for range 512 {
		lanes.Go(func() {
			for l := range next {
				if err := s.Add(tb.Context(), l); err != nil {
					tb.Error(err)
				}
			}
		})
	}
	for _, l := range letters {
		next <- l
	}
	close(next)
	lanes.Wait()
}

// TestEverybodyAtOnce: lanes add, the plugin takes back, operators list, requeue and drop; nothing is lost, doubled or
// reported busy.
func TestEverybodyAtOnce(t *testing.T) {
	path := newPath(t)
	s, o := openStore(t, path), operator(t, path)
	const n = 1500
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() {
		for ctx.Err() == nil {
			if _, err := o.Requeue(t.Context(), Filter{Device: "sensor_001"}, epoch); err != nil {
				t.Error(err)
				return
			}
			if _, err := o.Drop(t.Context(), Filter{Device: "sensor_002"}); err != nil {
				t.Error(err)
				return
			}
			for _, err := range o.List(t.Context(), Filter{}, 0) {
				if err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	taken := make(map[string]int)
	take := func() int {
		letters, err := s.Requeued(t.Context(), 100)
		if err != nil {
			t.Error(err)
		}
		for _, l := range letters {
			taken[l.MessageID]++
		}
		if err := s.Remove(t.Context(), letters...); err != nil {
			t.Error(err)
		}
		return len(letters)
	}
	others.Go(func() {
		for ctx.Err() == nil {
			take()
		}
	})
	var letters []Letter
	for i := range n {
		letters = append(letters, letter(i))
	}
	addAtOnce(t, s, letters)
	stop()
	others.Wait()

	if _, err := o.Requeue(t.Context(), Filter{Device: "sensor_001"}, epoch); err != nil {
		t.Fatal(err)
	}
	for take() > 0 {
	}
	if _, err := o.Drop(t.Context(), Filter{Device: "sensor_002"}); err != nil {
		t.Fatal(err)
	}
	for id, times := range taken {
		if times != 1 {
			t.Errorf("%s was taken %d times", id, times)
		}
	}
	if got := totals(t, s); len(taken) != n/3 || got.Letters != n/3 || got.Requeued != 0 {
		t.Errorf("%d taken, %+v left, want %d each", len(taken), got, n/3)
	}
}

// One transaction stores many letters: adding them must not take an fsync each.
func TestAddsShareTransactions(t *testing.T) {
	s := openStore(t, newPath(t))
	s.turn <- struct{}{} // the database is busy
	const n = 300
	var lanes sync.WaitGroup
	for i := range n {
		lanes.Go(func() {
			if err := s.Add(t.Context(), letter(i)); err != nil {
				t.Error(err)
			}
		})
	}
	waitUntil(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.waiting) == n
	})
	batch := s.takeWaiting()
	if len(batch) != n {
		t.Errorf("%d of %d in one transaction", len(batch), n)
	}
	s.mu.Lock()
	s.waiting = append(batch, s.waiting...)
	s.mu.Unlock()
	<-s.turn
	lanes.Wait()
	if got := totals(t, s); got.Letters != n {
		t.Errorf("%d letters", got.Letters)
	}
}

func TestTransactionsOfAddsAreBounded(t *testing.T) {
	s := new(Store)
	wait := func(size, n int) {
		for range n {
			s.waiting = append(s.waiting, &addition{Letter: Letter{Payload: make([]byte, size)}})
		}
	}
	wait(maxAdditionBytes+1, 1)
	wait(maxAdditionBytes/2, 3)
	wait(0, maxAdditions+1)
	for _, want := range []int{1, 2, maxAdditions, 2, 0} {
		if got := len(s.takeWaiting()); got != want {
			t.Errorf("%d letters, want %d", got, want)
		}
	}
}

func TestAddCanceled(t *testing.T) {
	s := openStore(t, newPath(t))
	s.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Add(ctx, letter(1)) }()
	waitUntil(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.waiting) == 1
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-s.turn
	add(t, s, letter(2))
	if got := list(t, s, Filter{}, 0); len(got) != 1 || got[0].Timestamp != epoch.Unix()+2 {
		t.Errorf("%+v", got)
	}
	if _, err := s.Requeued(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func BenchmarkAdd(b *testing.B) {
	s := openStore(b, newPath(b))
	b.SetParallelism(32) // 64 lanes on two processors
	var n int64
	var mu sync.Mutex
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n++
			l := letter(int(n))
			mu.Unlock()
			if err := s.Add(b.Context(), l); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkHundredThousand measures what an operator waits for; run it with -benchtime 1x.
func BenchmarkHundredThousand(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		s := openStore(b, newPath(b))
		var letters []Letter
		for i := range n {
			l := letter(i)
			l.Excerpt = strings.Repeat("x", 300)
			l.Payload = append(l.Payload, make([]byte, 200)...)
			letters = append(letters, l)
		}
		measure := func(unit string, do func()) {
			start := time.Now()
			do()
			b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/"+unit)
		}
		measure("add", func() { addAtOnce(b, s, letters) })
		measure("list-100", func() { list(b, s, Filter{}, 100) })
		measure("list-100-of-device", func() { list(b, s, Filter{Device: "sensor_001"}, 100) })
		measure("list", func() { list(b, s, Filter{}, 0) })
		measure("totals", func() { totals(b, s) })
		measure("count-of-device", func() { _, _ = s.Count(b.Context(), Filter{Device: "sensor_001"}) })
		measure("poll", func() { requeued(b, s, 100) })
		measure("requeue", func() { changed(b, n)(s.Requeue(b.Context(), Filter{}, epoch)) })
		measure("take-1000", func() {
			for range 10 {
				if err := s.Remove(b.Context(), requeued(b, s, 100)...); err != nil {
					b.Fatal(err)
				}
			}
		})
		measure("drop", func() { changed(b, n-1000)(s.Drop(b.Context(), Filter{})) })
	}
}
