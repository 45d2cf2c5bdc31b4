package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"mosquitto-bouncer/plugin/sqlite"
)

// Of one transaction of additions.
const (
	maxAdditions     = 500
	maxAdditionBytes = 8 << 20
)

// An addition is a letter on its way into the database. It is answered exactly once.
type addition struct {
	Letter
	done    chan error // holds one
	refused error      // there is no room for it, though for others
}

// Add stores a letter: once, however often it is called for one death of one message, which is known by its device,
// message id, timestamp and DiedAt. A later death of a message whose letter is still there takes that letter's place,
// with its number, and clears a mark to requeue it: it has just been tried again. Letters added at the same time share a
// transaction. When the error is not nil, the letter may or may not be stored. Nothing of l is kept.
func (s *Store) Add(ctx context.Context, l Letter) error {
	a := &addition{Letter: l, done: make(chan error, 1)}
	if err := a.prepare(); err != nil {
		return err
	}
	s.mu.Lock()
	s.waiting = append(s.waiting, a)
	s.mu.Unlock()
	// The goroutine that has the turn stores for all that wait.
	for {
		select {
		case err := <-a.done:
			return err
		case s.turn <- struct{}{}:
			s.addWaiting(ctx)
		case <-ctx.Done():
			if s.withdraw(a) {
				return ctx.Err()
			}
			return <-a.done // the payload is being read
		}
	}
}

// withdraw reports whether a is not being stored and will not be.
func (s *Store) withdraw(a *addition) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.waiting, a)
	if i < 0 {
		return false
	}
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return true
}

// addWaiting stores some of the letters that wait, the first included, and gives the turn back. Its own caller's
// cancellation is not to fail the others.
func (s *Store) addWaiting(ctx context.Context) {
	batch := s.takeWaiting()
	err := errors.New("storing dead letters panicked")
	defer func() {
		<-s.turn
		for _, a := range batch {
			if err == nil && a.refused != nil {
				s.noteWant(a.Device, a.room())
				a.done <- s.failed(a.refused)
				continue
			}
			s.noteWant(a.Device, 0)
			a.done <- err
		}
	}()
	if len(batch) == 0 {
		err = nil
		return
	}
	ctx = context.WithoutCancel(ctx)
	err = s.used(ctx, func(conn *sql.Conn) error {
		return sqlite.Write(ctx, conn, func() error { return s.insert(ctx, conn, batch) })
	})
}

func (s *Store) takeWaiting() []*addition {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.waiting) && n < maxAdditions && (n == 0 || size+len(s.waiting[n].Payload) <= maxAdditionBytes) {
		size += len(s.waiting[n].Payload)
		n++
	}
	batch := s.waiting[:n:n]
	s.waiting = s.waiting[n:]
	return batch
}

func (s *Store) insert(ctx context.Context, conn *sql.Conn, batch []*addition) error {
	letter, err := conn.PrepareContext(ctx, `INSERT INTO letters (device, message_id, timestamp, accepted_at, died_at, topic,
			traceparent, bytes, reason, status, attempts, deaths, excerpt)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)
		ON CONFLICT (device, message_id, timestamp) DO UPDATE SET
			accepted_at = min(accepted_at, excluded.accepted_at), died_at = excluded.died_at, topic = excluded.topic,
			traceparent = excluded.traceparent, bytes = excluded.bytes, reason = excluded.reason,
			status = excluded.status, attempts = excluded.attempts,
			deaths = deaths + 1, requeued_at = NULL, excerpt = excluded.excerpt
		WHERE excluded.died_at <> died_at
		RETURNING id`)
	if err != nil {
		return err
	}
	defer func() { _ = letter.Close() }()
	payload, err := conn.PrepareContext(ctx, "INSERT OR REPLACE INTO payloads (letter, payload) VALUES (?, ?)")
	if err != nil {
		return err
	}
	defer func() { _ = payload.Close() }()
	most, err := s.most(ctx, conn)
	if err != nil {
		return err
	}
	for _, a := range batch {
		if a.refused = s.admit(ctx, conn, &a.Letter, most); a.refused != nil {
			if errors.Is(a.refused, ErrDeviceFull) || errors.Is(a.refused, ErrFull) {
				continue
			}
			return a.refused
		}
		var id int64
		err := letter.QueryRowContext(ctx, a.Device, a.MessageID, a.Timestamp, a.AcceptedAt.UnixNano(), a.DiedAt.UnixNano(),
			a.Topic, a.Traceparent, len(a.Payload), a.Reason, a.Status, a.Attempts, a.Excerpt).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) { // stored before
			continue
		}
		if err != nil {
			return err
		}
		if _, err := payload.ExecContext(ctx, id, a.Payload); err != nil {
			return err
		}
	}
	return nil
}
