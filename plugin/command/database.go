package command

import (
	"context"
	"errors"
	"os"
	"time"

	"mosquitto-bouncer/plugin/sqlite"
)

func (s *Store) open() error {
	if err := sqlite.Ensure(s.path); err != nil {
		return err
	}
	// WAL, because only this process uses the database; FULL, because the sender relies on a command being kept.
	o := sqlite.Options{Busy: 2 * time.Second, Journal: "WAL", Synchronous: "FULL"}
	ctx := context.Background()
	var err error
	if s.db, err = sqlite.Open(s.path, o); err != nil {
		return err
	}
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return err
	}
	if err := schema().Migrate(ctx, s.conn); err != nil {
		return err
	}
	o.QueryOnly = true
	if s.read, err = sqlite.Open(s.path, o); err != nil {
		return err
	}
	s.read.SetMaxOpenConns(4)
	if s.file, err = os.Stat(s.path); err != nil {
		return err
	}
	return s.load(ctx)
}

// load reads the unfinished commands, and how many there are of each state.
func (s *Store) load(ctx context.Context) error {
	rows, err := s.conn.QueryContext(ctx, "SELECT "+columns+" FROM commands WHERE finished = 0 ORDER BY id")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		c, err := scan(rows)
		if err != nil {
			return err
		}
		s.reserve(c.Device, len(c.Body))
		s.add(&entry{Command: c, finished: make(chan struct{}), at: -1})
	}
	if err := rows.Err(); err != nil {
		return err
	}
	rows, err = s.conn.QueryContext(ctx, "SELECT state, count(*) FROM commands GROUP BY state")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var state State
		var n int64
		if err := rows.Scan(&state, &n); err != nil {
			return err
		}
		s.counts.ByState[state] = n
	}
	return rows.Err()
}

const columns = "id, device, coalesce(key, ''), body, state, created, expires, sent, finished, result, dropped"

func scan(row interface{ Scan(...any) error }) (c Command, err error) {
	var created, expires, sent, finished int64
	err = row.Scan(&c.ID, &c.Device, &c.Key, &c.Body, &c.State, &created, &expires, &sent, &finished, &c.Result, &c.ResultDropped)
	c.Created, c.Expires = time.Unix(0, created), time.Unix(expires, 0)
	c.SentAt, c.FinishedAt = timeOf(sent), timeOf(finished)
	return c, err
}

func timeOf(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func (s *Store) disconnect() error {
	var errs []error
	if s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(errs...)
}

// failed says which database failed, and what to do where that can be told.
func (s *Store) failed(err error) error {
	return sqlite.File{Holds: "commands", Path: s.path, Busy: "another program has it open; stop that program"}.Failed(err)
}
