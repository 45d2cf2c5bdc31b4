package device

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	maxInFlight = 16
	firstDelay  = time.Second // of everything that is tried again
	maxDelay    = time.Minute
	// noticeWait is how long the reason of a refusal is waited for, retryWait how long a message waits whose reason has not come.
	noticeWait = 2 * time.Second
	retryWait  = 2 * time.Second
	maxRefused = 3 // refusals of one message as stale or future, and without a reason
	// stableAfter is after what time a connection counts as good, if no message was acknowledged before.
	stableAfter = keepAlive * time.Second
)

// connect keeps a connection until ctx ends.
func (d *Device) connect(ctx context.Context) {
	delay := firstDelay
	for ctx.Err() == nil {
		begin := time.Now()
		good, err := d.converse(ctx)
		if ctx.Err() != nil {
			return
		}
		d.report(fmt.Errorf("device: the connection has ended or was not made: %w", err))
		if good || time.Since(begin) > stableAfter {
			delay = firstDelay
		}
		select {
		case <-time.After(delay - rand.N(delay/2)):
		case <-ctx.Done():
			return
		}
		delay = min(2*delay, maxDelay)
	}
}

// converse has one connection, from beginning to end. good is true if the gateway has acknowledged a message.
func (d *Device) converse(ctx context.Context) (good bool, err error) {
	s := &exchange{d: d, notices: make(chan Notice, maxInFlight), ended: make(chan struct{}), sent: map[uint16]*message{}}
	c, err := d.dial(ctx, s.received)
	if err != nil {
		close(s.ended)
		return false, err
	}
	s.conn = c
	stop := context.AfterFunc(ctx, c.bounded.hurry)
	defer func() {
		stop()
		close(s.ended)
		close(c.session.ended)
		c.close()
		s.end()
	}()
	for _, topic := range []string{d.config.Topics.Rejected, d.config.Topics.Command, d.config.Topics.Response} {
		if topic == "" {
			continue
		}
		granted, err := c.subscribe(ctx, topic)
		if err != nil {
			return false, fmt.Errorf("subscribing to %s: %w", topic, err)
		}
		if !granted {
			d.report(fmt.Errorf("device: the broker refuses the subscription to %s", topic))
		}
		s.hasNotices = s.hasNotices || granted && topic == d.config.Topics.Rejected
	}
	d.log.Info("connected")
	if d.OnConnected != nil {
		d.OnConnected()
	}
	err = s.run(ctx)
	if d.OnDisconnected != nil {
		d.OnDisconnected(err)
	}
	return s.good, err
}

// An exchange sends messages over one connection, and makes outcomes of what comes back.
type exchange struct {
	d          *Device
	conn       *conn
	notices    chan Notice
	ended      chan struct{}
	hasNotices bool
	running    atomic.Bool // notices are read

	again  []*message          // sent over an earlier connection, without an acknowledgement
	sent   map[uint16]*message // in flight, by packet id
	active []*message          // every message that is not idle
	paused time.Time           // when the gateway last asked for a pause
	stuck  time.Time           // nothing can be signed or written until then
	done   []finished
	good   bool
}

type finished struct {
	m       *message
	outcome Outcome
}

// received takes a message from the broker. It runs on paho's goroutine; the broker gets its acknowledgement when it returns.
func (s *exchange) received(topic string, payload []byte) {
	d := s.d
	switch t := d.config.Topics; {
	case topic == "":
	case topic == t.Rejected:
		// What the broker has kept from before this connection is of no use, and there may be so much of it that reading
		// it would keep the device from subscribing.
		if !s.running.Load() {
			return
		}
		n, err := ReadNotice(payload)
		if err != nil {
			return
		}
		select {
		case s.notices <- n:
		case <-s.ended:
		}
	case topic == t.Command:
		d.mu.Lock()
		now := time.Unix(d.now(), 0)
		d.mu.Unlock()
		c, err := VerifyCommand(d.config.Credential, d.config.DeviceID, payload, now)
		if err != nil {
			d.refusedCommand(ReasonOf(err))
			return
		}
		select {
		case d.pending <- c:
		default: // the gateway has not more unfinished commands, and sends this one again
			d.report(errors.New("device: a command is left out, because too many wait"))
		}
	case topic == t.Response:
		if d.OnResponse != nil {
			d.OnResponse(string(payload))
		}
	}
}

// run sends and listens until the connection ends, or ctx does.
func (s *exchange) run(ctx context.Context) error {
	s.begin()
	s.running.Store(true)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := s.fill(ctx); err != nil {
			return err
		}
		timer.Reset(s.nextDue())
		select {
		case a := <-s.conn.session.arrived:
			s.acknowledged(a)
			s.drain() // so that one sync is enough for what came together
		case n := <-s.notices:
			s.noticed(n)
		case <-s.d.wake:
		case <-timer.C:
			s.overdue()
		case <-s.conn.client.Done():
			return errors.New("the connection was lost")
		case <-ctx.Done():
			return nil
		}
		s.flush()
	}
}

// drain takes the acknowledgements that have come.
func (s *exchange) drain() {
	for {
		select {
		case a := <-s.conn.session.arrived:
			s.acknowledged(a)
		default:
			return
		}
	}
}

// begin finds what was sent over earlier connections and has no acknowledgement, and what was refused and waits.
func (s *exchange) begin() {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, m := range s.d.store.queue {
		switch {
		case m.phase != idle:
			s.active = append(s.active, m)
		case m.uncertain:
			s.again = append(s.again, m)
		}
	}
}

// end notes what is not known of the messages that were in flight.
func (s *exchange) end() {
	s.drain()
	for _, m := range slices.Clone(s.active) {
		switch m.phase {
		case inFlight:
			m.uncertain, m.held = true, false
			s.setPhase(m, idle)
		case refused: // no notice will come
			s.refusal(m, "")
		}
	}
	s.flush()
}

func (s *exchange) setPhase(m *message, p phase) {
	if m.phase == inFlight && p != inFlight {
		delete(s.sent, m.packet)
	}
	was := m.phase
	m.phase = p
	switch {
	case was == idle && p != idle:
		s.active = append(s.active, m)
	case was != idle && p == idle:
		s.active = slices.DeleteFunc(s.active, func(other *message) bool { return other == m })
	}
}

// nextDue is the time until something is due.
func (s *exchange) nextDue() time.Duration {
	now := time.Now()
	next := now.Add(time.Hour)
	for _, m := range s.active {
		// What is due and was not sent waits for something that is in flight.
		if (m.phase == refused || m.phase == waiting && m.due.After(now)) && m.due.Before(next) {
			next = m.due
		}
	}
	if s.stuck.After(now) && s.stuck.Before(next) {
		next = s.stuck
	}
	return max(next.Sub(now), 0)
}

// overdue gives up waiting for reasons.
func (s *exchange) overdue() {
	now := time.Now()
	for _, m := range slices.Clone(s.active) {
		if m.phase == refused && !m.due.After(now) {
			s.refusal(m, "")
		}
	}
}

func (s *exchange) acknowledged(a ack) {
	m := s.sent[a.packet]
	if m == nil {
		return
	}
	s.good = true
	switch {
	case a.code < 0x80:
		s.finish(m, Accepted, "")
	case a.code != notAuthorized:
		s.finish(m, Refused, mqttReason(a.code))
	case m.notice != nil:
		s.refusal(m, m.notice.Reason)
	case !s.hasNotices:
		s.refusal(m, "")
	default:
		s.setPhase(m, refused)
		m.due = time.Now().Add(noticeWait)
	}
}

const (
	notAuthorized  = 0x87
	packetTooLarge = 0x95
)

func mqttReason(code byte) string { return fmt.Sprintf("mqtt 0x%02x", code) }

// noticed takes a notice, which comes before or after the PUBACK.
func (s *exchange) noticed(n Notice) {
	for _, m := range s.active {
		if (m.phase != inFlight && m.phase != refused) || !strings.EqualFold(m.id, n.MessageID) {
			continue
		}
		if n.Reason == "stale" || n.Reason == "future" {
			s.setClock(n.ServerTime)
		}
		if m.phase == refused {
			s.refusal(m, n.Reason)
		} else {
			m.notice = &n
		}
		return
	}
}

func (s *exchange) setClock(serverTime int64) {
	d := s.d
	d.mu.Lock()
	offset := serverTime - d.options.Now().Unix()
	var err error
	if offset != d.store.offset {
		err = d.store.write(true, record{Op: opOffset, At: offset})
		d.store.offset = offset // it holds for this process in any case
	}
	d.mu.Unlock()
	d.log.Info("clock corrected", "offset_seconds", offset)
	if err != nil {
		d.report(err)
	}
}

// refusal decides what follows on a refusal; "": the reason has not come.
func (s *exchange) refusal(m *message, reason string) {
	retry := func(after time.Duration, resign, held bool) {
		m.resign, m.held, m.due, m.notice = resign, held, time.Now().Add(after), nil
		s.setPhase(m, waiting)
	}
	switch reason {
	case "stale", "future":
		m.stale++
		switch {
		case m.uncertain && s.d.options.NeverRepeat:
			s.finish(m, Unknown, reason)
		case m.stale >= maxRefused:
			s.finish(m, Refused, reason)
		default:
			retry(0, true, false)
		}
	case "replay":
		// Another's message cannot have this id: what the gateway knows is an earlier copy.
		if m.tries > 1 {
			s.finish(m, Accepted, "")
		} else {
			s.finish(m, Refused, reason)
		}
	case "rate_limited", "overloaded", "internal":
		s.paused = time.Now()
		if m.delay == 0 {
			m.delay = firstDelay
		}
		retry(m.delay, false, true)
		m.delay = min(2*m.delay, maxDelay)
	case "":
		if s.paused.Before(m.began) { // otherwise it was refused for the same reason, whose notice was the one of that second
			m.unnoticed++
		}
		if m.unnoticed >= maxRefused {
			s.finish(m, Refused, "unspecified")
		} else {
			retry(retryWait, m.tries == 1, false)
		}
	default:
		s.finish(m, Refused, reason)
	}
}

// finish has a message end, as soon as flush has written so.
func (s *exchange) finish(m *message, kind OutcomeKind, reason string) {
	m.held = false
	s.setPhase(m, idle)
	s.done = append(s.done, finished{m, Outcome{
		Delivery: m.number, Kind: kind, Reason: reason, MessageID: m.id, Sent: m.sent, MayBeRepeated: m.repeated,
	}})
}

// flush writes the outcomes and reports them.
func (s *exchange) flush() {
	if len(s.done) == 0 {
		return
	}
	d, done := s.d, s.done
	s.done = nil
	records := make([]record, len(done))
	for i, f := range done {
		records[i] = record{Op: opDone, Number: f.m.number}
	}
	d.mu.Lock()
	err := d.store.write(true, records...)
	if err != nil {
		for _, f := range done {
			d.store.forget(f.m)
		}
	}
	d.mu.Unlock()
	if err != nil {
		d.report(fmt.Errorf("outcomes are not kept, and messages may be sent again after a restart: %w", err))
	}
	for _, f := range done {
		o := f.outcome
		d.log.Info("outcome", "delivery", o.Delivery, "outcome", string(o.Kind), "reason", o.Reason, "message_id", o.MessageID)
		switch {
		case f.m.delivery != nil:
			f.m.delivery.outcome = o
			close(f.m.delivery.done)
		case f.m.command != "":
			if o.Kind != Accepted {
				d.report(fmt.Errorf("device: the answer to command %s: %s %s", f.m.command, o.Kind, o.Reason))
			}
		case d.OnOutcome != nil:
			d.OnOutcome(o)
		}
	}
}
