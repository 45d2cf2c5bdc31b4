package mailbox

import (
	"fmt"
	"sync"
	"testing"
)

func fill(t *testing.T, b *Box[string], items ...string) {
	t.Helper()
	for _, item := range items {
		if _, ok := b.Put(item); !ok {
			t.Fatalf("%q does not fit", item)
		}
	}
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestOldestFirst(t *testing.T) {
	b := New[string](10)
	same(t, b.Take(3))
	for i, want := range []bool{true, false, false} {
		if first, _ := b.Put(fmt.Sprint(i)); first != want {
			t.Errorf("put %d: first %v", i, first)
		}
	}
	same(t, b.Take(2), "0", "1")
	fill(t, b, "3", "4")
	if b.Len() != 3 {
		t.Errorf("%d items", b.Len())
	}
	same(t, b.TakeWhile(func(s string) bool { return s < "4" }), "2", "3")
	same(t, b.Take(10), "4")
	if first, _ := b.Put("5"); !first || b.Len() != 1 {
		t.Errorf("first %v, %d items", first, b.Len())
	}
}

func TestBounds(t *testing.T) {
	b := New[string](2)
	fill(t, b, "0", "1")
	for range 3 {
		if first, ok := b.Put("x"); first || ok {
			t.Error("more than the limit")
		}
	}
	if b.Dropped() != 3 || b.Dropped() != 0 {
		t.Error("what was dropped is counted once")
	}
	same(t, b.Take(1), "0")
	fill(t, b, "2")

	sized := NewSized(10, 5, func(s string) int { return len(s) })
	fill(t, sized, "aa", "bbb", "")
	put := func(item string, want bool) {
		t.Helper()
		if _, ok := sized.Put(item); ok != want {
			t.Errorf("%q: %v", item, ok)
		}
	}
	put("c", false)
	same(t, sized.Take(1), "aa")
	put("ddd", false)
	put("dd", true)
	if !sized.Withdraw(func(s string) bool { return s == "bbb" }) || sized.Withdraw(func(s string) bool { return s == "bbb" }) {
		t.Error("withdrawn once")
	}
	put("eee", true)
	put("f", false)
	if n := sized.Drain(func(string) {}); n != 3 || sized.Len() != 0 {
		t.Errorf("%d drained, %d left", n, sized.Len())
	}
	put("fffff", true)
	put("g", false)
}

func TestWithdraw(t *testing.T) {
	b := New[string](3)
	fill(t, b, "0", "1", "2")
	b.Withdraw(func(s string) bool { return s == "1" })
	fill(t, b, "3")
	same(t, b.Take(9), "0", "2", "3")
}

// What is put in while Drain hands over is there afterwards, and the box is not locked meanwhile.
func TestDrainHandsOverUnlocked(t *testing.T) {
	b := New[string](3)
	fill(t, b, "0", "1")
	var got []string
	b.Drain(func(s string) {
		got = append(got, s)
		if first, _ := b.Put("+" + s); first != (s == "0") {
			t.Errorf("%s: first %v", s, first)
		}
	})
	same(t, got, "0", "1")
	same(t, b.Take(9), "+0", "+1")
}

// A do that panics loses what it was to be handed, and leaves a box that works.
func TestDrainSurvivesAPanic(t *testing.T) {
	b := New[string](3)
	fill(t, b, "0", "1")
	func() {
		defer func() { _ = recover() }()
		b.Drain(func(string) { panic("oops") })
	}()
	fill(t, b, "2", "3", "4")
	same(t, b.Take(9), "2", "3", "4")
}

func TestLookingAndDrainingAllocateNothing(t *testing.T) {
	b := New[int](8)
	sum := 0
	do := func(n int) { sum += n }
	round := func() {
		for i := range 8 {
			b.Put(i)
		}
		b.Drain(do)
		b.Drain(do)
		b.Take(1)
	}
	round()
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNothingIsLostBetweenGoroutines(t *testing.T) {
	const putters, each = 8, 5000
	type item struct{ from, n int }
	b := New[item](putters * each)
	var put sync.WaitGroup
	for from := range putters {
		put.Go(func() {
			for n := range each {
				b.Put(item{from, n})
			}
		})
	}
	done := make(chan struct{})
	go func() { put.Wait(); close(done) }()
	var next [putters]int
	take := func(i item) {
		if next[i.from] != i.n {
			t.Errorf("of %d: %d, want %d", i.from, i.n, next[i.from])
		}
		next[i.from]++
	}
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		b.Drain(take)
		for _, i := range b.Take(3) {
			take(i)
		}
	}
	b.Drain(take)
	for from, n := range next {
		if n != each {
			t.Errorf("of %d: %d", from, n)
		}
	}
}
