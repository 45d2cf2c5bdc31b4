package command

import "container/heap"

// reserve makes room for a command. s.mu is held, or no other goroutine knows s yet.
func (s *Store) reserve(device string, size int) {
	s.reserved++
	s.waiting.Store(int64(s.reserved))
	s.perDevice[device]++
	s.bytes += int64(size)
}

func (s *Store) release(device string, size int) {
	s.reserved--
	s.waiting.Store(int64(s.reserved))
	if s.perDevice[device]--; s.perDevice[device] == 0 {
		delete(s.perDevice, device)
	}
	s.bytes -= int64(size)
}

// add takes an unfinished command into memory.
func (s *Store) add(e *entry) {
	s.entries[e.ID] = e
	s.byDevice[e.Device] = append(s.byDevice[e.Device], e)
	heap.Push(&s.expiry, e)
}

// expiryHeap has the command first that expires first.
type expiryHeap []*entry

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].Expires.Before(h[j].Expires) }
func (h expiryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}
func (h *expiryHeap) Push(x any) {
	e := x.(*entry)
	e.at = len(*h)
	*h = append(*h, e)
}
func (h *expiryHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h, e.at = old[:len(old)-1], -1
	return e
}
