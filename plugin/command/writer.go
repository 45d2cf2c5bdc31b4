package command

import (
	"container/heap"
	"context"
	"errors"
	"slices"
	"time"

	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/sqlite"
)

// run is the goroutine that writes.
func (s *Store) run() {
	defer close(s.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		stopping := false
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.stop:
			stopping = true
		}
		ok := s.round()
		if stopping {
			s.abandon()
			return
		}
		timer.Reset(s.sleep(ok))
	}
}

// sleep is the time until something is due that no call announces.
func (s *Store) sleep(ok bool) time.Duration {
	if !ok {
		return retryAfter
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.expiry) == 0 {
		return time.Minute
	}
	return min(time.Minute, max(time.Millisecond, time.Until(s.expiry[0].Expires)))
}

// round does everything that is due, and reports whether it could be written. It does not panic.
func (s *Store) round() (ok bool) {
	var batch []*creation
	var probes []chan error
	err := errors.New("storing commands panicked")
	defer func() {
		if v := recover(); v != nil {
			s.tell(false) // whether they are stored is not known, so they wait for the next start
			crash.Report(s.log, "commands", v)
		}
		for _, c := range batch {
			c.done <- err
		}
		for _, probe := range probes {
			probe <- err
		}
	}()
	s.receive()
	s.mu.Lock()
	s.expire(time.Now())
	batch, s.creations = s.creations, nil
	dirty := s.dirty
	s.dirty = nil
	late := s.late
	s.late = nil
	probes = s.probes
	s.probes = nil
	states := make([]Command, len(dirty)) // as they are written, whatever becomes of them meanwhile
	for i, e := range dirty {
		e.dirty = false
		states[i] = e.Command
	}
	s.mu.Unlock()

	var o outcome
	ctx := context.Background()
	if err = s.inPlace(); err == nil {
		err = sqlite.Write(ctx, s.conn, func() (err error) {
			if len(probes) > 0 {
				if err = sqlite.Probe(ctx, s.conn); err != nil {
					return err
				}
			}
			o, err = s.write(ctx, batch, states, late)
			return err
		})
	}
	if err != nil {
		err = s.failed(err)
	}
	s.settle(batch, dirty, states, late, o, err)
	if err != nil {
		return false
	}
	s.tell(true)
	return true
}

// tell tells of the answers of the last transaction, if they are stored, and makes room for others.
func (s *Store) tell(stored bool) {
	bytes := 0
	for _, t := range s.taken {
		if stored {
			t.stored()
		}
		bytes += t.bytes
	}
	s.inboxMu.Lock()
	s.answers -= len(s.taken)
	s.answerBytes -= bytes
	s.inboxMu.Unlock()
	clear(s.taken)
	s.taken = s.taken[:0]
}

// An outcome is what a transaction has done to commands that are not in memory.
type outcome struct {
	delta    map[State]int64 // to their numbers
	answered uint64          // of the late answers
	late     []Command       // which those were for; in part
}

// receive takes what the broker's thread has left.
func (s *Store) receive() {
	s.inboxMu.Lock()
	inbox := s.inbox
	s.inbox = nil
	s.inboxMu.Unlock()
	for _, e := range inbox {
		if e.id != "" {
			s.sent(e.id, e.at)
			continue
		}
		s.taken = append(s.taken, taken{len(e.payload), e.stored})
		a, err := parseAnswer(e.payload)
		s.mu.Lock()
		if err != nil {
			s.counts.Malformed++
			s.mu.Unlock()
			s.log.Warn("the answer to a command cannot be read and was ignored", "device", e.device, "error", err)
			continue
		}
		s.finish(a, e.device, e.at)
		s.mu.Unlock()
	}
}

func (s *Store) sent(id string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	if e == nil || e.State.Final() {
		return
	}
	e.SentAt = at
	s.change(e, Sent)
}

// finish settles a command by its device's answer. Of several answers the first counts.
func (s *Store) finish(a answer, device string, at time.Time) {
	e := s.entries[a.ID]
	switch {
	case e == nil:
		s.late = append(s.late, lateAnswer{a, device, at})
		return
	case e.Device != device, e.State.answer():
		s.counts.Strays++
		return
	}
	e.FinishedAt = at
	e.Result, e.ResultDropped = bounded(a.Result)
	s.counts.Answers++
	s.change(e, a.Status)
}

func bounded(result []byte) (kept []byte, dropped bool) {
	if len(result) > MaxResult {
		return nil, true
	}
	return result, false
}

// expire ends the commands whose time is up.
func (s *Store) expire(now time.Time) {
	for len(s.expiry) > 0 && !now.Before(s.expiry[0].Expires) {
		e := s.expiry[0]
		e.FinishedAt = now
		s.change(e, Expired)
	}
}

// change puts an entry into a state, to be written. s.mu is held.
func (s *Store) change(e *entry, to State) {
	s.counts.ByState[e.State]--
	s.counts.ByState[to]++
	if !e.dirty {
		e.dirty = true
		s.dirty = append(s.dirty, e)
	}
	wasFinal := e.State.Final()
	e.State = to
	s.changed(e.Command)
	if !to.Final() || wasFinal {
		return
	}
	heap.Remove(&s.expiry, e.at)
	of := s.byDevice[e.Device]
	if i := slices.Index(of, e); i >= 0 {
		of = slices.Delete(of, i, i+1)
	}
	if s.byDevice[e.Device] = of; len(of) == 0 {
		delete(s.byDevice, e.Device)
	}
	s.release(e.Device, len(e.Body))
	close(e.finished)
}

func (s *Store) changed(c Command) {
	if s.options.Changed != nil {
		s.options.Changed(c)
	}
}

// write stores creations and changes, and drops what is finished for long.
func (s *Store) write(ctx context.Context, batch []*creation, changed []Command, late []lateAnswer) (outcome, error) {
	o := outcome{delta: make(map[State]int64)}
	for _, c := range batch {
		if err := s.insert(ctx, c); err != nil {
			return o, err
		}
	}
	for _, c := range changed {
		_, err := s.conn.ExecContext(ctx, "UPDATE commands SET state = ?, sent = ?, finished = ?, result = ?, dropped = ? WHERE id = ?",
			c.State, nanoseconds(c.SentAt), nanoseconds(c.FinishedAt), c.Result, c.ResultDropped, c.ID)
		if err != nil {
			return o, err
		}
	}
	for _, a := range late {
		result, dropped := bounded(a.Result)
		done, err := s.conn.ExecContext(ctx, `UPDATE commands SET state = ?, finished = ?, result = ?, dropped = ?
			WHERE id = ? AND device = ? AND state = 'expired'`, a.Status, a.at.UnixNano(), []byte(result), dropped, a.ID, a.device)
		if err != nil {
			return o, err
		}
		n, err := done.RowsAffected()
		if err != nil {
			return o, err
		}
		o.delta[Expired] -= n
		o.delta[a.Status] += n
		if n > 0 {
			o.answered++
			o.late = append(o.late, Command{ID: a.ID, Device: a.device, State: a.Status, FinishedAt: a.at})
		}
	}
	return o, s.prune(ctx, o.delta)
}

func (s *Store) insert(ctx context.Context, c *creation) error {
	var key any
	if c.Key != "" {
		key = c.Key
	}
	_, err := s.conn.ExecContext(ctx, "INSERT INTO commands (id, device, key, body, state, created, expires) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, key) DO NOTHING",
		c.ID, c.Device, key, c.Body, c.State, c.Created.UnixNano(), c.Expires.Unix())
	if err != nil || key == nil {
		return err
	}
	stored, err := scan(s.conn.QueryRowContext(ctx, "SELECT "+columns+" FROM commands WHERE device = ? AND key = ?", c.Device, key))
	c.existing = nil
	if err == nil && stored.ID != c.ID {
		c.existing = &stored
	}
	return err
}

// prune drops finished commands that are too old or too many.
func (s *Store) prune(ctx context.Context, delta map[State]int64) error {
	s.mu.Lock()
	finished := int64(0)
	for state, n := range s.counts.ByState {
		if state.Final() {
			finished += n
		}
	}
	s.mu.Unlock()
	drop := func(where string, args ...any) error {
		rows, err := s.conn.QueryContext(ctx, "DELETE FROM commands WHERE id IN (SELECT id FROM commands WHERE finished > 0 "+where+") RETURNING state", args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var state State
			if err := rows.Scan(&state); err != nil {
				return err
			}
			delta[state]--
		}
		return rows.Err()
	}
	if err := drop("AND finished < ? ORDER BY finished LIMIT ?", time.Now().Add(-s.options.Keep).UnixNano(), pruneAtOnce); err != nil {
		return err
	}
	if over := finished - int64(s.options.MaxFinished); over > 0 {
		return drop("ORDER BY finished LIMIT ?", min(over, pruneAtOnce))
	}
	return nil
}

// settle takes the outcome of a transaction into memory.
func (s *Store) settle(batch []*creation, dirty []*entry, written []Command, late []lateAnswer, o outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.counts.Err == nil {
		s.log.Error("commands cannot be stored; trying again every second", "error", err)
	}
	s.counts.Err = err
	for _, c := range batch {
		if err != nil || c.existing != nil {
			s.release(c.Device, len(c.Body))
			continue
		}
		s.counts.Created++
		s.counts.ByState[c.State]++
		s.add(c.entry)
	}
	if err != nil {
		s.counts.WriteErrors++
		for _, e := range dirty {
			if !e.dirty {
				e.dirty = true
				s.dirty = append(s.dirty, e)
			}
		}
		s.late = append(late, s.late...)
		return
	}
	for state, n := range o.delta {
		s.counts.ByState[state] += n
	}
	s.counts.Answers += o.answered
	s.counts.Strays += uint64(len(late)) - o.answered
	for _, c := range o.late {
		s.changed(c)
	}
	for i, e := range dirty {
		if !e.dirty && written[i].State.Final() {
			delete(s.entries, e.ID)
		}
	}
}

// abandon answers those who wait for a store that is closed.
func (s *Store) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.creations {
		c.done <- ErrClosed
	}
	s.creations = nil
}
