package forward

import "time"

// splitAfter is how many requests with the same messages must fail before they go in two. The first failure may be a
// moment's.
const splitAfter = 2

// covered returns how many of the parcel's parts have a message in its first request.
func (p *parcel) covered() int {
	n := p.spans[0].n
	for i, part := range p.parts {
		if n -= part.n; n <= 0 {
			return i + 1
		}
	}
	return len(p.parts)
}

// divide moves all but the first k parts of p into a parcel of their own: no lane is in both, so neither waits for the
// other.
func (s *schedule) divide(p *parcel, k int) *parcel {
	q := s.newParcel()
	n := 0
	for _, part := range p.parts[:k] {
		n += part.n
	}
	q.positions = append(q.positions, p.positions[n:]...)
	p.positions = p.positions[:n]
	q.parts = append(q.parts, p.parts[k:]...)
	p.parts = p.parts[:k]
	keep := 0
	for keep < len(p.spans) && p.spans[keep].n <= n {
		n -= p.spans[keep].n
		keep++
	}
	if q.spans = append(q.spans, p.spans[keep:]...); n > 0 {
		q.spans[0].n -= n
		p.spans[keep].n = n
		keep++
	}
	p.spans = p.spans[:keep]
	s.list(q)
	return q
}

// isolate lets every lane of p continue that has no message in its first request.
func (s *schedule) isolate(p *parcel, now time.Time) {
	if k := p.covered(); k < len(p.parts) {
		s.wait(s.divide(p, k), now, 0)
	}
}

// halve splits the first request of p, which has failed more than once, so that in the end the message at fault is by itself
// and its neighbours are delivered. Of several lanes each half goes its own way; one lane's messages keep their order. It
// reports whether there was something to split.
func (s *schedule) halve(p *parcel, now time.Time, after time.Duration) bool {
	n := p.spans[0].n
	if n == 1 {
		return false
	}
	lanes := p.covered()
	if lanes == 1 {
		p.cut(n / 2)
		return true
	}
	k, before := 1, p.parts[0].n
	for k < lanes-1 && before+p.parts[k].n <= n/2 {
		before += p.parts[k].n
		k++
	}
	s.wait(s.divide(p, k), now, after)
	return true
}
