package forward

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"mosquitto-bouncer/plugin/crash"
)

const (
	maxPanics = 3
	// warnEvery is the least time between two warnings that deliveries fail.
	warnEvery = time.Minute
)

// worker is what one worker uses again and again.
type worker struct {
	batch    Batch
	first    string      // id of the first message of the request
	accepted []time.Time // when each of them was
}

// message is the one that the log names where a request goes wrong.
func (w *worker) message() *Message { return &w.batch.Messages[:1][0] }

// work sends parcels until the Forwarder stops. A panic costs the attempt, not the worker.
func (f *Forwarder) work() {
	defer f.leave()
	for !f.serve() {
	}
}

// leave notes that a worker or the dispatcher has ended.
func (f *Forwarder) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.workers--; f.workers == 0 {
		close(f.exited)
	}
}

func (f *Forwarder) serve() (ended bool) {
	defer crash.Log(f.log, "forwarder")
	w := &worker{batch: Batch{Messages: make([]Message, 0, 1)}}
	for {
		p := f.nextParcel()
		if p == nil {
			return true
		}
		for f.settle(w, p, f.try(w, p)) {
		}
	}
}

func (f *Forwarder) nextParcel() *parcel {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.schedule.next()
}

// attempt is the end of one try to deliver the first request of a parcel.
type attempt struct {
	Result
	fate     fate
	sent     bool       // a request was made
	between  bool       // the backend has taken other messages since it last refused this one
	letter   DeadLetter // of a dead one
	panicked bool

	device, messageID string      // of the first message, the latter "" when that is not known
	accepted          []time.Time // of a delivered request's messages
}

func (f *Forwarder) try(w *worker, p *parcel) (a attempt) {
	a.device = p.device()
	if p.letter != nil { // only the Store is still to be told
		a.fate, a.letter, a.messageID = dead, *p.letter, p.letterOf
		return a
	}
	defer func() {
		if v := recover(); v != nil {
			m := w.message()
			crash.Report(f.log, "delivering a message", v, "device", m.DeviceID, "message_id", m.MessageID)
			a = attempt{Result: Result{Err: fmt.Errorf("panic: %v", v)}, panicked: true, device: a.device, messageID: w.first}
			s := &p.spans[0]
			if s.panics++; s.panics < maxPanics {
				return
			}
			if a.fate = split; s.n == 1 {
				a.fate, a.letter = dead, DeadLetter{Reason: ReasonPanic, Attempts: s.attempts}
			}
		}
	}()
	if a.fate, a.letter.Reason, a.Err = f.load(w, p); a.fate == retry {
		p.spans[0].attempts++
		a.Result = f.cfg.Sink.Send(f.ctx, &w.batch)
		a.sent = true
		a.fate, a.between = f.judge(p, a.Meaning)
		a.accepted = w.accepted
		if a.fate == retry && givenUp(p, a.Meaning) {
			a.fate, a.letter = dead, DeadLetter{Reason: ReasonUnreadableAnswer, Status: a.Status}
			a.Status = 0 // it says nothing about the backend
			if p.spans[0].n > 1 {
				a.fate = split
			}
		} else if a.fate == dead {
			a.letter = DeadLetter{Reason: ReasonRefused, Status: a.Status, Excerpt: a.Excerpt}
		}
	}
	a.letter.Attempts = p.spans[0].attempts
	a.messageID = w.first
	return a
}

// load loads the first request of a parcel, and cuts off what does not fit or cannot be sent as it is. The fate says
// what to do: send it if that is retry, else it is the end of the attempt.
func (f *Forwarder) load(w *worker, p *parcel) (o fate, reason string, err error) {
	w.first, w.accepted = "", w.accepted[:0]
	w.batch.reset()
	now := time.Now()
	parts, left, weight := p.parts, 0, 0
	device := ""
	for i, pos := range p.positions[:p.spans[0].n] {
		if left == 0 {
			device, left = parts[0].lane.device, parts[0].n
			parts = parts[1:]
		}
		left--
		m := w.batch.next(device)
		switch err = f.store.Load(pos, m); {
		case errors.Is(err, ErrUnreadable):
			o, reason = dead, ReasonUnreadable
		case err != nil:
			o = hold
		case f.cfg.MaxAge > 0 && now.Sub(m.AcceptedAt) > f.cfg.MaxAge:
			o, reason = dead, ReasonExpired
		}
		if i == 0 {
			w.first = m.MessageID
		}
		weight += m.weight()
		if o != retry || i > 0 && weight > f.cfg.batchBytes {
			if i > 0 {
				p.cut(i)
				return retry, "", nil // it is the next request's trouble
			}
			if p.spans[0].n > 1 {
				p.cut(1)
			}
			return o, reason, err
		}
		w.batch.add()
		w.accepted = append(w.accepted, m.AcceptedAt)
	}
	return retry, "", nil
}

// settle draws the consequences of an attempt: callback and Store first, so that a lane's follow each other in order,
// then the accounts. It reports whether the worker is to continue with p.
func (f *Forwarder) settle(w *worker, p *parcel, a attempt) (more bool) {
	dropped := false
	switch a.fate {
	case delivered:
		dropped = len(w.batch.Messages) == 1 && !f.handOver(w.message(), &a.Result)
		for _, pos := range p.positions[:p.spans[0].n] {
			f.tellDelivered(pos)
		}
	case dead:
		if a.letter.DiedAt.IsZero() {
			a.letter.DiedAt = time.Now()
		}
		if err := f.bury(p.positions[0], &a); err != nil {
			p.letter, p.letterOf = &a.letter, a.messageID
			if a.fate, a.Err = hold, err; errors.Is(err, ErrNoRoom) {
				a.fate = noRoom
			}
		}
	case split:
		p.cut(p.spans[0].n / 2)
	}
	e := f.account(p, &a, dropped)
	if e.gone {
		f.tellGone(&a)
	}
	f.tell(&e, &a)
	return e.more
}

// handOver gives the callback what the backend answered; false: there was a body, and the callback did not get it.
func (f *Forwarder) handOver(m *Message, r *Result) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			crash.Report(f.log, "handing over an answer", p, "device", m.DeviceID, "message_id", m.MessageID)
		}
	}()
	switch {
	case r.Unusable != "":
		f.sampler.warn(f.log, "backend's answer dropped", "device", m.DeviceID, "message_id", m.MessageID,
			"status", r.Status, "reason", r.Unusable)
		return false
	case f.respond != nil && len(r.Body) > 0:
		f.respond(Response{Message: m, Status: r.Status, Body: r.Body, ContentType: r.ContentType, Latency: r.Latency})
	}
	return true
}

func (f *Forwarder) tellDelivered(pos uint64) {
	defer crash.Log(f.log, "recording a delivery")
	f.store.Delivered(pos)
}

// bury is where a message ends that is not to be delivered: nothing else follows for it.
func (f *Forwarder) bury(pos uint64, a *attempt) (err error) {
	stored := false
	defer func() {
		if p := recover(); p != nil {
			crash.Report(f.log, "storing a dead letter", p, "device", a.device, "message_id", a.messageID)
			if !stored {
				err = fmt.Errorf("panic: %v", p)
			}
		}
	}()
	args := []any{"device", a.device, "message_id", a.messageID, "reason", a.letter.Reason, "status", a.letter.Status}
	if a.letter.Reason == ReasonUnreadableAnswer && a.Err != nil {
		args = append(args, "error", a.Err)
	}
	if err = f.store.Dead(a.device, pos, a.letter); err != nil {
		return fmt.Errorf("storing the dead letter of a message that is %s: %w", a.letter.Reason, err)
	}
	stored = true
	f.sampler.warn(f.log, "message is dead", args...)
	return nil
}

// tellGone tells the caller and the log that an address is gone.
func (f *Forwarder) tellGone(a *attempt) {
	defer crash.Log(f.log, "reporting that the backend is gone")
	device := a.device
	if !a.OwnAddress {
		device = ""
	}
	if f.cfg.Gone != nil {
		f.cfg.Gone(device, a.Address)
	}
	if device == "" {
		f.log.Error("backend answered 410 Gone, all messages are kept until delivery is resumed", "url", a.Address)
		return
	}
	f.sampler.warn(f.log, "backend answered 410 Gone, the device's messages are kept until delivery is resumed",
		"device", device, "url", a.Address)
}

// account books an attempt and says what is to follow.
func (f *Forwarder) account(p *parcel, a *attempt, answerDropped bool) (e events) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	defer func() {
		f.drain()
		f.setAlarm(now)
		e.pending, e.lanes = f.pending, f.outage.lanes
	}()
	probe := p.probe

	if a.sent {
		f.responses.count(a.Status)
	}
	if a.sent && a.Meaning.heard() && a.fate != kept && a.fate != doubted {
		f.noteAnswer(p, a, now, &e)
	}
	switch n := p.spans[0].n; a.fate {
	case retry, kept, doubted:
		f.landed(p)
		if f.ended {
			return e // cut off by Close: not a failure
		}
		f.retries++
		f.noteFailure(p, now)
		f.isolate(p, now)
		f.wait(p, now, f.noteTrouble(p, a, probe, now, &e))
		return e
	case hold, noRoom:
		f.landed(p)
		if f.ended {
			return e
		}
		f.isolate(p, now)
		if a.fate == noRoom {
			e.blocked = f.block(p)
			return e
		}
		f.storeErrors++
		p.holds++
		e.held = true
		f.wait(p, now, backoff(p.holds, maxBackoff))
		return e
	case gone:
		f.landed(p)
		device := ""
		if a.OwnAddress {
			device = a.device
		}
		e.gone = f.suspend(p, device, now)
		return e
	case delivered:
		f.delivered += uint64(n)
		for _, at := range a.accepted {
			f.latency.observe(now.Sub(at))
		}
		if answerDropped {
			f.answersDropped++
		}
		f.consume(p, n)
	case dead:
		f.dead++
		f.consume(p, 1)
	}
	if len(p.spans) > 0 && !f.ended {
		e.more = true
		return e
	}
	f.landed(p)
	if len(p.spans) == 0 {
		f.discard(p)
	}
	return e
}

// noteAnswer books that the backend has spoken to p: taken its messages, or refused them for good.
func (f *Forwarder) noteAnswer(p *parcel, a *attempt, now time.Time, e *events) {
	e.since = f.outage.since
	if a.fate == delivered {
		f.noteTaken(p, now, e)
	} else if f.standing.refusing {
		f.breaker.tryNext(now) // it speaks, and yet may refuse whatever comes next
		f.schedule.answered(p)
		f.forgive(p, e, false)
		return
	}
	e.resumed = f.breaker.answered()
	f.schedule.answered(p)
	f.forgive(p, e, a.fate == delivered)
}

// forgive notes that the lanes of a request do not fail any more.
func (f *Forwarder) forgive(p *parcel, e *events, accepted bool) {
	for _, part := range p.parts[:p.covered()] {
		f.recovered(part.lane)
	}
	if accepted && f.outage.over() {
		e.recovered = true
	}
}

// noteTaken books that the backend has taken the messages of a request.
func (f *Forwarder) noteTaken(p *parcel, now time.Time, e *events) {
	since := f.standing.since
	f.standing.taken++
	for _, part := range p.parts[:p.covered()] {
		if f.standing.took(part.lane.device, now) && f.standing.told {
			e.recovered, e.since = true, since
			f.standing.told, f.outage.said = false, false
		}
	}
}

// noteFailure books a failed request with each of its lanes.
func (f *Forwarder) noteFailure(p *parcel, now time.Time) {
	for _, part := range p.parts[:p.covered()] {
		if l := part.lane; l.failures == 0 {
			f.outage.begin(now)
			l.failures = 1
		} else if l.failures < math.MaxUint16 {
			l.failures++
		}
	}
}

// noteTrouble books why a request is to be repeated, and says after which time.
func (f *Forwarder) noteTrouble(p *parcel, a *attempt, probe bool, now time.Time, e *events) time.Duration {
	failures := int(p.parts[0].lane.failures)
	switch {
	case a.fate == doubted, a.fate == kept && a.between && !f.standing.refusing:
		if e.doubted = true; f.standing.refusing {
			f.breaker.refused(probe, now)
		}
		if a.fate == kept { // others are taken: it concerns only this device
			return max(backoff(failures, maxBackoff), a.RetryAfter)
		}
		return max(doubtBackoff(p.doubts.n), min(a.RetryAfter, maxDoubtTime-p.doubts.time))
	case a.fate == kept:
		f.standing.conclude(a.Status, now)
		e.refusing = f.standing.tell(now)
		f.breaker.refused(probe, now)
		wait := max(backoff(failures, maxProbeInterval), a.RetryAfter)
		if a.Meaning == Doubtful {
			f.halve(p, now, wait) // one message may be at fault after all
		}
		return wait
	case a.panicked:
		return backoff(failures, maxBackoff)
	}
	if a.Meaning != Unreadable { // else the backend is up, and says so
		e.down = f.breaker.failure(p, probe, now)
	}
	e.failing = f.outage.warn(now)
	if p.spans[0].attempts >= splitAfter && a.Meaning != Busy && f.halve(p, now, max(backoff(1, maxBackoff), a.RetryAfter)) {
		failures = 1
	}
	return max(backoff(failures, maxBackoff), a.RetryAfter)
}

// consume takes the first request, of n messages, off a parcel, and gives back the lanes that have no more in it.
func (f *Forwarder) consume(p *parcel, n int) {
	f.pending -= n
	f.open.Add(-int64(n))
	p.letter, p.holds, p.doubts = nil, 0, doubts{}
	p.positions = slices.Delete(p.positions, 0, n)
	p.spans = slices.Delete(p.spans, 0, 1)
	done := 0
	for n > 0 {
		part := &p.parts[done]
		taken := min(n, part.n)
		n -= taken
		if part.n -= taken; part.n > 0 {
			break
		}
		done++
		if l := part.lane; l.n == 0 {
			f.recovered(l)
		}
		f.release(part.lane)
	}
	p.parts = slices.Delete(p.parts, 0, done)
}

// recovered notes that a lane no longer fails, if it did: the backend has answered, or there is nothing left to send.
func (f *Forwarder) recovered(l *lane) {
	if l.failures != 0 {
		l.failures = 0
		f.outage.lanes--
	}
}
