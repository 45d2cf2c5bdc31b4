package gate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mosquitto-bouncer/plugin/mailbox"
)

const (
	// maxQuestions is how many may wait for the broker's thread, and answerWithin how long.
	maxQuestions = 64
	answerWithin = 2 * time.Second
	// answeredPerRound is for about how many devices the broker's thread answers at a time.
	answeredPerRound = 128
)

// Errors of Gate.Counts.
var (
	ErrQuestions  = errors.New("too many requests about devices; try again")
	ErrUnanswered = fmt.Errorf("the broker's event loop has not answered within %v: it is busy, or it never ticks; see its log and /healthz", answerWithin)
)

// Counts are the verdicts on the publishes of one device, since the start.
type Counts struct {
	Accepted     uint64
	LastAccepted time.Time           // zero: none
	Others       [ReasonCount]uint64 // by reason
}

// verdicts is Counts as the broker's thread keeps it: small for devices of which nothing is refused.
type verdicts struct {
	accepted uint64
	last     int64                // when one was accepted last, in nanoseconds since 1970; 0: none
	others   *[ReasonCount]uint64 // by reason; nil: none
}

func (v *verdicts) accept(now time.Time) {
	v.accepted++
	v.last = now.UnixNano()
}

// add counts one that was not accepted.
func (v *verdicts) add(reason Reason) {
	if v.others == nil {
		v.others = new([ReasonCount]uint64)
	}
	v.others[reason]++
}

func (v *verdicts) counts() (c Counts) {
	c.Accepted = v.accepted
	if v.last != 0 {
		c.LastAccepted = time.Unix(0, v.last)
	}
	if v.others != nil {
		c.Others = *v.others
	}
	return c
}

// A question asks what the broker's thread knows of some devices. Only that thread reads and writes their counts, without
// locks, in the memory that it uses for each publish anyway. Other goroutines ask, and get the answer in its next round.
type question struct {
	devices []string
	answer  chan []Counts // has room for one
}

// questions holds those that are not answered yet. Safe for concurrent use.
type questions struct {
	box  *mailbox.Box[question]
	wake func()
}

func newQuestions(wake func()) questions {
	return questions{mailbox.New[question](maxQuestions), wake}
}

// answer answers the oldest questions, of about answeredPerRound devices together. Broker's thread.
func (qs *questions) answer(of func(device string) Counts) {
	room := answeredPerRound
	for _, q := range qs.box.TakeWhile(func(q question) bool {
		fits := room > 0
		room -= max(1, len(q.devices))
		return fits
	}) {
		counts := make([]Counts, len(q.devices))
		for i, id := range q.devices {
			counts[i] = of(id)
		}
		q.answer <- counts
	}
}

// counted returns the counts of a device. Broker's thread.
func (g *Gate) counted(id string) (c Counts) {
	if d := g.devices.known(g.registry.Lookup([]byte(id))); d != nil {
		c = d.verdicts.counts()
	}
	return c
}

// Counts returns the verdicts on the publishes of devices, in their order. It waits for the broker's thread, 2 s at most;
// the error is ErrQuestions or ErrUnanswered. Any goroutine but the broker's thread.
func (g *Gate) Counts(ctx context.Context, devices []string) ([]Counts, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	q := question{devices, make(chan []Counts, 1)}
	if _, ok := g.questions.box.Put(q); !ok {
		return nil, ErrQuestions
	}
	g.questions.wake()
	timer := time.NewTimer(answerWithin)
	defer timer.Stop()
	select {
	case answer := <-q.answer:
		return answer, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	g.questions.box.Withdraw(func(other question) bool { return other.answer == q.answer })
	return nil, ErrUnanswered
}
