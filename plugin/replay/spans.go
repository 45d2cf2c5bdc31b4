package replay

import "slices"

// maxSpans bounds what a Set keeps about the timestamps it forgot.
const maxSpans = 8

// Span is a range of timestamps in unix seconds, both ends included.
type Span struct{ First, Last int64 }

// spans is a set of timestamps that may grow, but never by omission: ascending
// spans, apart from one another. A span too many closes the narrowest gap, so
// the gaps that last are those between the readings of a clock that jumped.
type spans []Span

func newSpans() spans { return make(spans, 0, maxSpans+1) }

func (s spans) contain(timestamp int64) bool {
	for i := len(s) - 1; i >= 0 && timestamp <= s[i].Last; i-- {
		if timestamp >= s[i].First {
			return true
		}
	}
	return false
}

// add adds the span n; one that ends before it begins is empty.
func (s *spans) add(n Span) {
	if n.First > n.Last || n.First == n.Last && s.contain(n.First) {
		return
	}
	// Those from i up to j overlap or touch n and are replaced by their union.
	i := 0
	for i < len(*s) && (*s)[i].Last < n.First-1 {
		i++
	}
	j := i
	for ; j < len(*s) && (*s)[j].First-1 <= n.Last; j++ {
		n.First = min(n.First, (*s)[j].First)
		n.Last = max(n.Last, (*s)[j].Last)
	}
	*s = slices.Replace(*s, i, j, n)
	if len(*s) > maxSpans {
		s.closeNarrowestGap()
	}
}

func (s *spans) closeNarrowestGap() {
	a := *s
	at := 1
	for i := 2; i < len(a); i++ {
		if a[i].First-a[i-1].Last < a[at].First-a[at-1].Last {
			at = i
		}
	}
	a[at-1].Last = a[at].Last
	*s = slices.Delete(a, at, at+1)
}
