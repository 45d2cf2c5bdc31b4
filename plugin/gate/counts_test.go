package gate

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestQuestionsAreBounded: while the event loop does not run, a question takes 2 s, and only so many may wait.
func TestQuestionsAreBounded(t *testing.T) {
	g := startGate(t, nil)
	begin := time.Now()
	if _, err := g.Counts(t.Context(), []string{"sensor_001"}); !errors.Is(err, ErrUnanswered) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took < answerWithin || took > answerWithin+5*time.Second {
		t.Errorf("answered after %v", took)
	}
	box := g.questions.box
	if box.Len() != 0 {
		t.Error("a question waits that is not asked any more")
	}
	for range maxQuestions {
		if _, ok := box.Put(question{[]string{"sensor_001"}, make(chan []Counts, 1)}); !ok {
			t.Fatal("no room")
		}
	}
	if _, err := g.Counts(t.Context(), []string{"sensor_001"}); !errors.Is(err, ErrQuestions) {
		t.Errorf("%v", err)
	}
	g.AnswerCounts()
	if n := box.Len(); n != 0 {
		t.Errorf("%d are not answered", n)
	}
	const many = 100 // devices at a time
	for range 3 {
		if _, ok := box.Put(question{make([]string, many), make(chan []Counts, 1)}); !ok {
			t.Fatal("no room")
		}
	}
	g.AnswerCounts()
	if n := box.Len(); n != 1 {
		t.Errorf("%d questions are left, of which the thread was to answer about %d devices", n, answeredPerRound)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := g.Counts(ended, []string{"sensor_001"}); err == nil {
		t.Error("answered to a request that has ended")
	}
}

// BenchmarkVerdictCounts measures what counting costs a publish.
func BenchmarkVerdictCounts(b *testing.B) {
	var v verdicts
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		v.accept(now)
	}
}
