// Package mailbox leaves something for another thread: any goroutine puts in, and the broker's thread, which may wait for
// nothing, takes out when it comes to it.
package mailbox

import (
	"slices"
	"sync"
	"sync/atomic"
)

// A Box holds items until they are taken, oldest first. What does not fit is counted and dropped. To look into an empty
// one costs an atomic load. Safe for concurrent use.
//
// Its lock guards a few assignments. It is held while the functions given to NewSized, TakeWhile and Withdraw run, which
// must return at once and not use the box, and not while Drain's does.
type Box[T any] struct {
	limit, room int
	size        func(T) int // nil: room does not count

	count atomic.Int64 // of items; changed with mu held

	mu      sync.Mutex // guards what follows
	items   []T
	spare   []T // the slice that Drain has emptied, to be filled next
	taken   int // of room
	dropped int
}

// New returns a box for up to limit items.
func New[T any](limit int) *Box[T] { return &Box[T]{limit: limit} }

// NewSized returns a box for up to limit items whose sizes add up to room at the most. The size of an item must not change.
func NewSized[T any](limit, room int, size func(T) int) *Box[T] {
	return &Box[T]{limit: limit, room: room, size: size}
}

// Put adds an item. first reports that the box was empty, so that the goroutine that takes from it may have to be woken; ok is false
// where the item does not fit.
func (b *Box[T]) Put(item T) (first, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := 0
	if b.size != nil {
		size = b.size(item)
	}
	if len(b.items) >= b.limit || b.taken+size > b.room {
		b.dropped++
		return false, false
	}
	b.items = append(b.items, item)
	b.taken += size
	b.count.Store(int64(len(b.items)))
	return len(b.items) == 1, true
}

// Len returns how many items there are. It takes no lock.
func (b *Box[T]) Len() int { return int(b.count.Load()) }

// Take returns up to n of the oldest items.
func (b *Box[T]) Take(n int) []T {
	return b.TakeWhile(func(T) bool { n--; return n >= 0 })
}

// TakeWhile returns the oldest items, up to the first that want refuses.
func (b *Box[T]) TakeWhile(want func(T) bool) []T {
	if b.count.Load() == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for n < len(b.items) && want(b.items[n]) {
		n++
	}
	taken := slices.Clone(b.items[:n])
	b.remove(0, n)
	return taken
}

// Drain hands every item to do, oldest first, and returns how many there were. One goroutine at a time may call it. It
// allocates nothing once the box has grown to what comes at a time.
func (b *Box[T]) Drain(do func(T)) int {
	if b.count.Load() == 0 {
		return 0
	}
	b.mu.Lock()
	items := b.items
	b.items, b.spare, b.taken = b.spare[:0], nil, 0
	b.count.Store(0)
	b.mu.Unlock()
	for _, item := range items {
		do(item)
	}
	clear(items) // what they refer to is not kept
	b.mu.Lock()
	b.spare = items[:0]
	b.mu.Unlock()
	return len(items)
}

// Withdraw removes the first item that is the one, and reports whether there was one.
func (b *Box[T]) Withdraw(is func(T) bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.items {
		if is(b.items[i]) {
			b.remove(i, i+1)
			return true
		}
	}
	return false
}

// Dropped returns how many items have not fitted since the last call.
func (b *Box[T]) Dropped() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.dropped
	b.dropped = 0
	return n
}

// remove takes out items[from:to]. b.mu is held.
func (b *Box[T]) remove(from, to int) {
	if b.size != nil {
		for i := from; i < to; i++ {
			b.taken -= b.size(b.items[i])
		}
	}
	b.items = slices.Delete(b.items, from, to)
	b.count.Store(int64(len(b.items)))
}
