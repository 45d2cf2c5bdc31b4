package deadletter

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/sqlite"
)

const (
	pageLetters = 1000
	// maxRequeuedBytes bounds the payloads that Requeued returns at once, but for the first.
	maxRequeuedBytes = 4 << 20
	// maxChangedBytes bounds the payloads of letters that are dropped in one transaction, but for the first: it is what
	// the transaction may write, and what others may wait for.
	maxChangedBytes = 4 << 20
)

const columns = `id, device, message_id, timestamp, accepted_at, died_at, topic, traceparent, bytes, reason, status,
	attempts, deaths, requeued_at, excerpt`

// scanLetter reads the columns, and into what else there is.
func scanLetter(scan func(...any) error, more ...any) (Letter, error) {
	var l Letter
	var accepted, died int64
	var requeued sql.NullInt64
	err := scan(append([]any{&l.ID, &l.Device, &l.MessageID, &l.Timestamp, &accepted, &died, &l.Topic, &l.Traceparent, &l.Bytes,
		&l.Reason, &l.Status, &l.Attempts, &l.Deaths, &requeued, &l.Excerpt}, more...)...)
	if err != nil {
		return Letter{}, err
	}
	l.AcceptedAt, l.DiedAt = time.Unix(0, accepted), time.Unix(0, died)
	if requeued.Valid {
		l.RequeuedAt = time.Unix(0, requeued.Int64)
	}
	return l, nil
}

// where returns the filter as a condition of SQL, with its arguments.
func (f Filter) where() (string, []any) {
	conditions, args := []string{"TRUE"}, []any(nil)
	and := func(condition string, arg any) {
		conditions = append(conditions, condition)
		args = append(args, arg)
	}
	if f.IDs != nil {
		and("id IN (SELECT value FROM json_each(?))", idList(f.IDs))
	}
	if f.Device != "" {
		and("device = ?", f.Device)
	}
	if f.Reason != "" {
		and("reason = ?", f.Reason)
	}
	if !f.Since.IsZero() {
		and("died_at >= ?", f.Since.UnixNano())
	}
	return strings.Join(conditions, " AND "), args
}

func idList(ids []int64) string {
	list, _ := json.Marshal(ids) // numbers cannot fail
	return string(list)
}

// List yields the letters the filter selects without their payloads, the last to die first, at most limit of them (0:
// all), or an error, which ends it. It reads in pages and holds no lock while it yields, so a change made meanwhile may
// or may not be seen.
func (s *Store) List(ctx context.Context, f Filter, limit int) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		left := limit
		if limit == 0 {
			left = math.MaxInt
		}
		died, id := int64(math.MaxInt64), int64(math.MaxInt64)
		for left > 0 {
			n := min(left, pageLetters)
			letters, err := s.page(ctx, f, died, id, n)
			if err != nil {
				yield(Letter{}, err)
				return
			}
			for _, l := range letters {
				if !yield(l, nil) {
					return
				}
				died, id = l.DiedAt.UnixNano(), l.ID
			}
			if len(letters) < n {
				return
			}
			left -= n
		}
	}
}

// page returns up to n letters that come after the one with this time of death and number.
func (s *Store) page(ctx context.Context, f Filter, died, id int64, n int) (letters []Letter, err error) {
	where, args := f.where()
	err = s.use(ctx, func(conn *sql.Conn) error {
		letters, err = read(ctx, conn, "SELECT "+columns+" FROM letters WHERE "+where+
			" AND (died_at, id) < (?, ?) ORDER BY died_at DESC, id DESC LIMIT ?", append(args, died, id, n)...)
		return err
	})
	return letters, err
}

func read(ctx context.Context, conn *sql.Conn, query string, args ...any) (letters []Letter, err error) {
	rows, err := conn.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		l, err := scanLetter(rows.Scan)
		if err != nil {
			return nil, err
		}
		letters = append(letters, l)
	}
	return letters, rows.Err()
}

// Count returns how many letters the filter selects.
func (s *Store) Count(ctx context.Context, f Filter) (n int64, err error) {
	where, args := f.where()
	err = s.use(ctx, func(conn *sql.Conn) error {
		n, err = sqlite.Number(ctx, conn, "SELECT count(*) FROM letters WHERE "+where, args...)
		return err
	})
	return n, err
}

// Totals returns what there is. It is quick however much that is.
func (s *Store) Totals(ctx context.Context) (t Totals, err error) {
	err = s.use(ctx, func(conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, `SELECT letters, bytes,
			(SELECT count(*) FROM letters WHERE requeued_at IS NOT NULL) FROM totals`).Scan(&t.Letters, &t.Bytes, &t.Requeued)
	})
	return t, err
}

// Get returns a letter with its payload. The error is ErrNotFound where there is no such letter.
func (s *Store) Get(ctx context.Context, id int64) (l Letter, err error) {
	err = s.use(ctx, func(conn *sql.Conn) error {
		var payload []byte
		l, err = scanLetter(conn.QueryRowContext(ctx,
			"SELECT "+columns+", payload FROM letters JOIN payloads ON letter = id WHERE id = ?", id).Scan, &payload)
		l.Payload = payload
		if errors.Is(err, sql.ErrNoRows) {
			return notFound(id)
		}
		return err
	})
	return l, err
}

func notFound(id int64) error { return fmt.Errorf("dead letter %d: %w", id, ErrNotFound) }

// Requeue marks the letters the filter selects for the plugin to take back, and returns how many it marked; a letter
// that is marked already is left as it is, and so is one without a payload, for there is nothing to send. Named by their numbers they are marked all or none, and the error is
// ErrNotFound where one is missing. Others are marked in steps: after an error some may be, and are counted.
func (s *Store) Requeue(ctx context.Context, f Filter, now time.Time) (int64, error) {
	return s.change(ctx, f, "requeued_at IS NULL AND bytes > 0", math.MaxInt64, func(conn *sql.Conn, ids string) (sql.Result, error) {
		return conn.ExecContext(ctx, `UPDATE letters SET requeued_at = ?
			WHERE id IN (SELECT value FROM json_each(?))`, now.UnixNano(), ids)
	})
}

// Drop removes the letters the filter selects for good, marked ones as well, and returns how many; a marked one may
// have been taken already. Named by their numbers they are removed all or none, and the error is ErrNotFound where one
// is missing. Others are removed in steps: after an error some may be, and are counted.
func (s *Store) Drop(ctx context.Context, f Filter) (int64, error) {
	defer s.reclaim(context.WithoutCancel(ctx))
	return s.change(ctx, f, "TRUE", maxChangedBytes, func(conn *sql.Conn, ids string) (sql.Result, error) {
		return conn.ExecContext(ctx, "DELETE FROM letters WHERE id IN (SELECT value FROM json_each(?))", ids)
	})
}

// change applies do to the letters that the filter and the condition select, the newest first: what is removed at the
// end of a file costs nothing to give back. Letters added meanwhile are not affected.
func (s *Store) change(ctx context.Context, f Filter, condition string, maxBytes int64,
	do func(conn *sql.Conn, ids string) (sql.Result, error)) (changed int64, err error) {
	if f.IDs != nil {
		maxBytes = math.MaxInt64
	}
	letters := pageLetters
	for before := int64(math.MaxInt64); before > 0; {
		var n int64
		from := before
		err := s.use(ctx, func(conn *sql.Conn) error {
			return sqlite.Write(ctx, conn, func() error {
				if err := exist(ctx, conn, f.IDs); err != nil {
					return err
				}
				ids, err := selected(ctx, conn, f, condition, before, maxBytes, letters)
				if err != nil || len(ids) == 0 {
					before = 0
					return err
				}
				before = ids[len(ids)-1]
				if f.IDs != nil {
					before = 0
				}
				result, err := do(conn, idList(ids))
				if err != nil {
					return err
				}
				n, err = result.RowsAffected()
				return err
			})
		})
		switch {
		case sqlite.IsFull(err) && letters > 1 && f.IDs == nil:
			letters = 1 + letters/100 // the rollback journal has some room on a full disk
			before = from
			continue
		case sqlite.IsFull(err) && !s.memory && !s.create:
			// The last resort: an end of this program in the midst of it would damage the database.
			s.memory = true
			before = from
			continue
		case err != nil:
			return changed, err
		}
		changed += n
	}
	return changed, nil
}

// exist returns ErrNotFound if one of the letters does not.
func exist(ctx context.Context, conn *sql.Conn, ids []int64) error {
	if ids == nil {
		return nil
	}
	id, err := sqlite.Number(ctx, conn, "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM letters) LIMIT 1", idList(ids))
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	return notFound(id)
}

// selected returns the numbers of the next letters to change, in descending order: of all that have been named, or else
// of as many as one transaction should change.
func selected(ctx context.Context, conn *sql.Conn, f Filter, condition string, before, maxBytes int64, limit int) (ids []int64, err error) {
	where, args := f.where()
	if f.IDs != nil {
		limit = len(f.IDs)
	}
	rows, err := conn.QueryContext(ctx, "SELECT id, bytes FROM letters WHERE "+where+" AND "+condition+
		" AND id < ? ORDER BY id DESC LIMIT ?", append(args, before, limit)...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var total int64
	for rows.Next() {
		var id, bytes int64
		if err := rows.Scan(&id, &bytes); err != nil {
			return nil, err
		}
		if total += bytes; total > maxBytes && len(ids) > 0 {
			break
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// Requeued returns letters that are marked to be requeued, with their payloads, in the order of acceptance: at most
// limit of them, and at most 4 MiB of payload, but one where there is one. It is cheap enough to be polled. Remove what
// was taken before asking for more.
func (s *Store) Requeued(ctx context.Context, limit int) (letters []Letter, err error) {
	err = s.use(ctx, func(conn *sql.Conn) error {
		rows, err := conn.QueryContext(ctx, "SELECT "+columns+`, payload FROM letters JOIN payloads ON letter = id
			WHERE requeued_at IS NOT NULL ORDER BY accepted_at, id LIMIT ?`, limit)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		size := int64(0)
		for rows.Next() {
			var payload []byte
			l, err := scanLetter(rows.Scan, &payload)
			if err != nil {
				return err
			}
			if size += l.Bytes; size > maxRequeuedBytes && len(letters) > 0 {
				return nil
			}
			l.Payload = payload
			letters = append(letters, l)
		}
		return rows.Err()
	})
	return letters, err
}

// Remove removes letters that were taken with Requeued, all or none. One whose message has died again since is left.
func (s *Store) Remove(ctx context.Context, letters ...Letter) error {
	if len(letters) == 0 {
		return nil
	}
	defer s.reclaim(context.WithoutCancel(ctx))
	return s.use(ctx, func(conn *sql.Conn) error {
		return sqlite.Write(ctx, conn, func() error {
			for _, l := range letters {
				if _, err := conn.ExecContext(ctx, "DELETE FROM letters WHERE id = ? AND deaths = ?", l.ID, l.Deaths); err != nil {
					return err
				}
			}
			return nil
		})
	})
}
