package replay

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSpans(t *testing.T) {
	eight := []Span{{0, 0}, {10, 10}, {20, 20}, {30, 30}, {40, 40}, {50, 50}, {60, 60}, {70, 70}}
	for _, c := range []struct {
		name string
		add  []Span
		want []Span
	}{
		{"none", nil, nil},
		{"empty", []Span{{5, 4}}, nil},
		{"one", []Span{{5, 5}}, []Span{{5, 5}}},
		{"again", []Span{{5, 5}, {5, 5}}, []Span{{5, 5}}},
		{"adjacent", []Span{{5, 5}, {6, 6}, {4, 4}}, []Span{{4, 6}}},
		{"apart", []Span{{5, 5}, {7, 7}, {3, 3}}, []Span{{3, 3}, {5, 5}, {7, 7}}},
		{"between", []Span{{5, 5}, {7, 7}, {6, 6}}, []Span{{5, 7}}},
		{"inside", []Span{{5, 9}, {6, 8}}, []Span{{5, 9}}},
		{"over several", []Span{{5, 5}, {7, 7}, {9, 9}, {20, 20}, {4, 9}}, []Span{{4, 9}, {20, 20}}},
		{"eight", eight, eight},
		{"a ninth below", append(eight[:8:8], Span{-8, -8}), append([]Span{{-8, 0}}, eight[1:]...)},
		{"a ninth above", append(eight[:8:8], Span{79, 79}), append(eight[:7:7], Span{70, 79})},
		{"a ninth far above", append(eight[:8:8], Span{year, year}), append([]Span{{0, 10}}, append(eight[2:8:8], Span{year, year})...)},
		{"a ninth amid", append(eight[:8:8], Span{33, 33}), append([]Span{{0, 0}, {10, 10}, {20, 20}, {30, 33}}, eight[4:]...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSpans()
			for _, span := range c.add {
				s.add(span)
			}
			if !slices.Equal(s, c.want) {
				t.Errorf("got %v, want %v", s, c.want)
			}
		})
	}
}

// Against a map of single timestamps: never one too few, exact up to eight
// spans, and beyond that every end of a span is a timestamp that was added.
func TestSpansModel(t *testing.T) {
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 2))
		s := newSpans()
		model := map[int64]bool{}
		exact := true
		for range 200 {
			first := random.Int64N(100 + int64(seed)*5)
			n := Span{first, first + random.Int64N(3)*random.Int64N(4)}
			s.add(n)
			for timestamp := n.First; timestamp <= n.Last; timestamp++ {
				model[timestamp] = true
			}
			runs := 0
			for timestamp := range model {
				if !model[timestamp-1] {
					runs++
				}
				if !s.contain(timestamp) {
					t.Fatalf("seed %d: %d is missing in %v", seed, timestamp, s)
				}
			}
			exact = exact && runs <= maxSpans
			if exact && runs != len(s) || len(s) > maxSpans || cap(s) != maxSpans+1 {
				t.Fatalf("seed %d: %d spans for %d runs: %v", seed, len(s), runs, s)
			}
			covered := 0
			for i, span := range s {
				if span.First > span.Last || i > 0 && span.First <= s[i-1].Last+1 {
					t.Fatalf("seed %d: not ascending and apart: %v", seed, s)
				}
				if !model[span.First] || !model[span.Last] {
					t.Fatalf("seed %d: an end of %v was not added: %v", seed, span, s)
				}
				covered += int(span.Last - span.First + 1)
			}
			if exact && covered != len(model) {
				t.Fatalf("seed %d: %d timestamps covered, want %d: %v", seed, covered, len(model), s)
			}
		}
	}
}

// The gap that a jump of a year leaves outlasts the small ones of quiet nights.
func TestSpansKeepWidestGap(t *testing.T) {
	s := newSpans()
	for day := range int64(400) {
		s.add(Span{day * 86400, day*86400 + 60000})
		if day == 200 {
			s.add(Span{10 * year, 10*year + 600})
		}
	}
	if got, want := fmt.Sprint(s[len(s)-1]), fmt.Sprint(Span{10 * year, 10*year + 600}); got != want {
		t.Errorf("last span %v, want %v", got, want)
	}
	if got := s[len(s)-2].Last; got != 399*86400+60000 {
		t.Errorf("the span before ends at %d", got)
	}
}
