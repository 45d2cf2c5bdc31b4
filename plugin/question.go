package plugin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/outbox"
)

const (
	// maxQuestions may wait for the broker's thread; answerWithin is for how long.
	maxQuestions = 64
	answerWithin = 2 * time.Second
	// answeredPerRound is about how many devices the broker's thread tells of each time it comes round.
	answeredPerRound = 128
	// slowestEvery is how old the list of the slowest devices may be: to make it, every lane is looked at.
	slowestEvery = time.Second
)

// A question is about what the broker's thread knows of some devices. It alone keeps their counts, plainly, beside what it
// looks at for each publish anyway; who else wants to know asks, and is answered when the thread comes round next, which
// the question hastens.
type question struct {
	devices []string
	answer  chan []verdicts // takes one without being received from
}

// questions holds those that are not answered yet. Safe for concurrent use.
type questions struct {
	any   atomic.Bool // whether there are any, so that looking costs one load
	mu    sync.Mutex  // guards asked; held for a few assignments, also by the broker's thread
	asked []question
}

var (
	errQuestions  = &httpd.Error{Status: 503, Reason: "overloaded", Detail: "too many others ask about devices; try again", RetryAfter: time.Second}
	errUnanswered = &httpd.Error{Status: 503, Reason: "unavailable", RetryAfter: time.Second,
		Detail: fmt.Sprintf("the broker's event loop has not answered within %v: it is busy, or it never ticks; see its log and /healthz", answerWithin)}
)

func (qs *questions) put(q question) error {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if len(qs.asked) >= maxQuestions {
		return errQuestions
	}
	qs.asked = append(qs.asked, q)
	qs.any.Store(true)
	return nil
}

// take returns the first ones, of about n devices together.
func (qs *questions) take(n int) (taken []question) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for len(qs.asked) > 0 && n > 0 {
		n -= max(1, len(qs.asked[0].devices))
		taken = append(taken, qs.asked[0])
		qs.asked = slices.Delete(qs.asked, 0, 1)
	}
	qs.any.Store(len(qs.asked) > 0)
	return taken
}

func (qs *questions) withdraw(q question) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	qs.asked = slices.DeleteFunc(qs.asked, func(other question) bool { return other.answer == q.answer })
	qs.any.Store(len(qs.asked) > 0)
}

// answerQuestions tells those who have asked. Broker's thread.
func (g *Gateway) answerQuestions() {
	if !g.questions.any.Load() {
		return
	}
	for _, q := range g.questions.take(answeredPerRound) {
		answer := make([]verdicts, len(q.devices))
		for i, id := range q.devices {
			d := g.devices.known(g.registry.Lookup([]byte(id)))
			if d == nil {
				continue
			}
			answer[i] = d.verdicts
			if d.verdicts.others != nil {
				others := *d.verdicts.others
				answer[i].others = &others
			}
		}
		q.answer <- answer
	}
}

// ask returns the verdicts on the publishes of devices, in their order. Any goroutine but the broker's thread.
func (g *Gateway) ask(ctx context.Context, devices []string) ([]verdicts, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	q := question{devices, make(chan []verdicts, 1)}
	if err := g.questions.put(q); err != nil {
		return nil, err
	}
	g.waker.Wake()
	timer := time.NewTimer(answerWithin)
	defer timer.Stop()
	select {
	case answer := <-q.answer:
		return answer, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	g.questions.withdraw(q)
	return nil, errUnanswered
}

// Device tells what is known of a device.
func (s service) Device(ctx context.Context, id string) (httpd.Device, error) {
	if s.g.registry.Lookup([]byte(id)) == nil {
		return httpd.Device{}, errNoSuchDevice
	}
	said, err := s.g.ask(ctx, []string{id})
	if err != nil {
		return httpd.Device{}, err
	}
	return s.g.tell(s.g.outbox.Queues(id)[0], &said[0]), nil
}

// Slowest tells of the devices that wait longest for the backend, of up to httpd.MaxDevices.
func (s service) Slowest(ctx context.Context, n int) ([]httpd.Device, error) {
	queues := slices.DeleteFunc(s.g.outbox.Queues(s.g.slowest.get(s.g.outbox)...), func(q forward.Queue) bool { return q.Messages == 0 })
	slices.SortFunc(queues, func(a, b forward.Queue) int { return cmp.Compare(a.Oldest, b.Oldest) })
	queues = queues[:min(n, len(queues))]
	ids := make([]string, len(queues))
	for i := range queues {
		ids[i] = queues[i].Device
	}
	said, err := s.g.ask(ctx, ids)
	if err != nil {
		return nil, err
	}
	devices := make([]httpd.Device, len(queues))
	for i := range queues {
		devices[i] = s.g.tell(queues[i], &said[i])
	}
	return devices, nil
}

// slowest is whose messages were the oldest when somebody last asked, for those who ask within a second. What waits of them
// since is another question.
type slowest struct {
	mu      sync.Mutex // guards what follows; held while the lanes are looked at, by those who ask alone
	at      time.Time
	devices []string
}

func (s *slowest) get(box *outbox.Outbox) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() || time.Since(s.at) >= slowestEvery {
		queues := box.Slowest(httpd.MaxDevices)
		s.devices = make([]string, len(queues))
		for i := range queues {
			s.devices[i] = queues[i].Device
		}
		s.at = time.Now()
	}
	return s.devices
}

// tell puts together what is known of a device.
func (g *Gateway) tell(q forward.Queue, v *verdicts) httpd.Device {
	d := httpd.Device{
		ID:          q.Device,
		Since:       g.started,
		Accepted:    v.accepted,
		Pending:     q.Messages,
		Suspended:   q.Suspended,
		Failures:    q.Failures,
		Refused:     make(map[string]uint64),
		OldestSince: g.outbox.AcceptedAt(q),
	}
	if r := g.registry.Lookup([]byte(q.Device)); r != nil {
		d.Registered, d.Disabled = true, r.Disabled
	}
	if v.last != 0 {
		d.LastAccepted = time.Unix(0, v.last)
	}
	if v.others != nil {
		for reason, n := range v.others {
			switch {
			case n == 0:
			case gate.Reason(reason) == gate.Redelivered:
				d.Redelivered = n
			default:
				d.Refused[gate.Reason(reason).String()] = n
			}
		}
	}
	return d
}
