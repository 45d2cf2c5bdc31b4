package forward

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Why a message became a dead letter. The strings are stable.
const (
	reasonRefused = "refused" // the backend answered 3xx or a final 4xx
	reasonExpired = "expired" // older than Config.MaxAge
	reasonPanic   = "panic"   // delivering it panicked, maxPanics times
)

const (
	maxPanics = 3
	// warnEvery is the least time between two warnings that deliveries fail.
	warnEvery = time.Minute
)

// courier sends one message at a time. Each worker has its own.
type courier interface {
	// send makes one attempt, bounded by Config.Timeout.
	send(m *Message) reply
}

// work serves lanes until the Forwarder stops. A panic costs the attempt, not the worker.
func (f *Forwarder) work() {
	for !f.serve() {
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.workers--; f.workers == 0 {
		close(f.exited)
	}
}

func (f *Forwarder) serve() (ended bool) {
	defer func() {
		if p := recover(); p != nil {
			f.panicked("forwarding panicked", nil, p)
		}
	}()
	c := f.cfg.courier()
	for {
		l := f.nextLane()
		if l == nil {
			return true
		}
		a := f.try(c, l.head())
		if a.panicked {
			c = f.cfg.courier() // the old one is in an unknown state
			if l.panics++; l.panics >= maxPanics {
				a.outcome, a.reason = dead, reasonPanic
			}
		}
		f.settle(l, a)
	}
}

// panicked logs a recovered panic; m may be nil. It does not panic, even if it is the log that does.
func (f *Forwarder) panicked(msg string, m *Message, p any) {
	defer func() { _ = recover() }()
	args := []any{"panic", fmt.Sprint(p), "stack", string(debug.Stack())}
	if m != nil {
		args = append(args, "device", m.DeviceID, "message_id", m.MessageID)
	}
	f.log.Error(msg, args...)
}

func (f *Forwarder) nextLane() *lane {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.schedule.next()
}

// attempt is the end of one try to deliver a message.
type attempt struct {
	reply
	outcome  outcome
	reason   string // of a dead one
	panicked bool
}

func (f *Forwarder) try(c courier, m *Message) (a attempt) {
	defer func() {
		if p := recover(); p != nil {
			f.panicked("delivering a message panicked", m, p)
			a = attempt{reply: reply{err: fmt.Errorf("panic: %v", p)}, panicked: true}
		}
	}()
	if f.cfg.MaxAge > 0 && time.Since(m.AcceptedAt) > f.cfg.MaxAge {
		return attempt{outcome: dead, reason: reasonExpired}
	}
	a.reply = c.send(m)
	if a.outcome = a.reply.outcome(); a.outcome == dead {
		a.reason = reasonRefused
	}
	return a
}

// settle draws the consequences of an attempt: answer or dead letter first, so that a lane's follow each other in
// order, then the accounts.
func (f *Forwarder) settle(l *lane, a attempt) {
	m := l.head()
	dropped := false
	switch a.outcome {
	case delivered:
		dropped = !f.handOver(m, &a.reply)
	case dead:
		f.deadLetter(m, a.reason, a.status)
	}
	e := f.account(l, &a, dropped)
	e.log(f.log, m, &a.reply)
}

// handOver gives the callback what the backend answered; false: there was a body, and the callback did not get it.
func (f *Forwarder) handOver(m *Message, r *reply) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			f.panicked("handing over an answer panicked", m, p)
		}
	}()
	switch {
	case r.unusable != "":
		f.sampler.warn(f.log, "backend's answer dropped", "device", m.DeviceID, "message_id", m.MessageID,
			"status", r.status, "reason", r.unusable)
		return false
	case f.answer != nil && len(r.body) > 0:
		f.answer(Answer{Message: m, Status: r.status, Body: r.body, ContentType: r.contentType, Latency: r.latency})
	}
	return true
}

// deadLetter is where a message ends that is not to be delivered: nothing else follows for it.
func (f *Forwarder) deadLetter(m *Message, reason string, status int) {
	defer func() {
		if p := recover(); p != nil {
			f.panicked("storing a dead letter panicked", m, p)
		}
	}()
	f.sampler.warn(f.log, "message is dead", "device", m.DeviceID, "message_id", m.MessageID, "reason", reason,
		"status", status)
}

// account books an attempt and says what is worth a line in the log.
func (f *Forwarder) account(l *lane, a *attempt, answerDropped bool) (e events) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	probe := l.probe
	f.landed(l)

	if a.outcome == retry {
		if f.ended {
			return e // cut off by Close: nobody's failure
		}
		f.retries++
		if l.failures++; l.failures == 1 {
			f.outage.begin(now)
		}
		if !a.panicked {
			e.suspended = f.breaker.failure(l, probe, now)
			e.failing = f.outage.warn(now)
		}
		f.wait(l, now, max(backoff(l.failures, maxBackoff), a.retryAfter))
		f.setAlarm(now)
		e.pending, e.lanes = f.pending, f.outage.lanes
		return e
	}

	// A dead letter without a status says nothing about the backend.
	answered := a.status != 0
	if answered {
		e.resumed = f.breaker.answered()
	}
	if answerDropped {
		f.answersDropped++
	}
	if a.outcome == delivered {
		f.delivered++
	} else {
		f.dead++
	}
	f.pending--
	f.bytes -= l.head().size()
	f.proceed(l)
	if l.failures > 0 && (answered || l.empty()) {
		l.failures = 0
		e.recovered = f.outage.end(answered)
	}
	e.since = f.outage.since
	e.pending, e.lanes = f.pending, f.outage.lanes
	if f.closed && f.pending == 0 {
		close(f.drained)
	}
	f.setAlarm(now)
	return e
}

// outage tells the log when deliveries begin to fail and when they succeed again, and not each time.
type outage struct {
	lanes  int       // that failed and have not recovered
	since  time.Time // the first of them failed
	warned time.Time // of the last warning; zero: none yet
}

// begin notes that a lane fails that did not before.
func (o *outage) begin(now time.Time) {
	if o.lanes++; o.lanes == 1 {
		o.since = now
	}
}

// warn reports whether a failed attempt is to be logged: at most one a minute.
func (o *outage) warn(now time.Time) bool {
	if !o.warned.IsZero() && now.Sub(o.warned) < warnEvery {
		return false
	}
	o.warned = now
	return true
}

// end notes that a lane no longer fails and reports whether that is to be logged: none fails any more, and the failing
// had been logged.
func (o *outage) end(answered bool) bool {
	o.lanes--
	return o.lanes == 0 && answered && !o.warned.Before(o.since)
}

// events are what account found worth telling, to be logged once the lock is released.
type events struct {
	failing, recovered, suspended, resumed bool

	pending, lanes int
	since          time.Time
}

func (e *events) log(log *slog.Logger, m *Message, r *reply) {
	if e.failing {
		args := []any{"device", m.DeviceID, "message_id", m.MessageID}
		if r.status != 0 {
			args = append(args, "status", r.status)
		}
		if r.err != nil {
			args = append(args, "error", r.err)
		}
		log.Warn("backend does not take messages, retrying",
			append(args, "failing_devices", e.lanes, "pending", e.pending)...)
	}
	if e.suspended {
		log.Warn("backend seems down, asking with one message at a time", "pending", e.pending)
	}
	if e.resumed {
		log.Info("backend answers again, sending at full rate", "pending", e.pending)
	}
	if e.recovered {
		log.Info("backend takes messages again", "after", time.Since(e.since).Round(time.Millisecond),
			"pending", e.pending)
	}
}

// sampler bounds lines of which there is one a message.
type sampler struct {
	limiter    *rate.Limiter
	suppressed atomic.Uint64 // since the last line
}

func (s *sampler) warn(log *slog.Logger, msg string, args ...any) {
	if !s.limiter.Allow() {
		s.suppressed.Add(1)
		return
	}
	if n := s.suppressed.Swap(0); n > 0 {
		args = append(args, "lines_suppressed", n)
	}
	log.Warn(msg, args...)
}
