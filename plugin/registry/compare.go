package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"mosquitto-bouncer/plugin/sqlite"
)

// The background comparison. At these figures it takes an eighth of a processor at most, and a database of a million
// devices half a minute; a small one it takes some milliseconds every half minute.
const (
	compareEvery  = 30 * time.Second      // between the beginnings of two passes
	compareSoon   = time.Second           // from a change that the change log does not explain to a pass
	compareRetry  = 5 * time.Second       // from a pass that failed to the next
	compareBudget = 30 * time.Millisecond // of each poll
	comparePage   = 1000                  // rows read under one lock
)

// A comparison finds what the polls have missed: a change that neither SQLite's change counter nor the change log shows,
// whatever program made it. It goes through the whole database again and again, a page at a time so that no writer waits
// for it, and over a connection of its own for each pass, which has nothing cached. For one goroutine.
type comparison struct {
	every time.Duration
	next  time.Time // when the next pass begins
	pass  *pass     // nil: none
	err   error     // why the last pass could not begin or continue; nil: it could
	again bool      // the last pass failed, which is reported if this one does too: its tables may have been remade meanwhile
}

// A pass is one going through.
type pass struct {
	source *source // of its own
	tables schema
	query  string
	start  *snapshot
	last   any // the value of tables.order up to which rows were read; nil: none was
	seen   []uint64
	count  int // of bits in seen
}

// hasten has a pass begin soon.
func (c *comparison) hasten() {
	if soon := time.Now().Add(min(compareSoon, c.every)); soon.Before(c.next) {
		c.next = soon
	}
}

// end gives up the present pass.
func (c *comparison) end() {
	if c.pass != nil {
		_ = c.pass.source.close()
		c.pass = nil
	}
}

// fail gives up the present pass for an error. It is reported until a pass begins: that the connection of the polls can
// still read, as where the file's owner has changed, does not mean that the database is followed.
func (c *comparison) fail(s *source, err error) error {
	c.end()
	c.again = false
	c.err = fmt.Errorf("%s: %w", s.path, explainIn(s.path, err, func() bool { return s.wal }))
	c.next = time.Now().Add(min(compareRetry, c.every))
	return c.err
}

// compareSome continues for compareBudget. An error is one of the database, as those of refresh; that another program has
// locked it is none, and the pass continues afterwards.
func (r *Registry) compareSome(ctx context.Context) error {
	c := &r.compare
	now := time.Now()
	switch {
	case r.keyless: // what is in force is not what the database holds, and that is reported
		c.end()
		return nil
	case c.pass == nil && now.Before(c.next):
		return c.err
	case c.pass == nil:
		p, err := r.source.newPass(ctx, r.current.Load())
		if sqlite.IsBusy(err) {
			return c.err
		}
		if err != nil {
			return c.fail(r.source, err)
		}
		c.pass, c.err, c.next = p, nil, now.Add(c.every)
	}
	for until := now.Add(compareBudget); c.pass != nil && time.Now().Before(until); {
		before := c.pass.last
		same, done, err := c.pass.page(ctx, r.current.Load())
		if err == nil && same && done {
			same = c.pass.complete(r.current.Load())
		}
		switch {
		case sqlite.IsBusy(err):
			c.pass.last = before
			return nil
		case err != nil && !c.again:
			c.end()
			c.again, c.next = true, time.Now()
			return nil
		case err != nil:
			return c.fail(r.source, err)
		case !same:
			c.pass.last = before
			return r.differs(ctx)
		case done:
			c.end()
			c.again = false
		}
	}
	return nil
}

// differs is called when the comparison has found a difference: one that a poll finds too is a change that was made in
// between; any other was made in a way that is not known here, and everything is read.
func (r *Registry) differs(ctx context.Context) error {
	version, at, before := r.source.version, r.source.at, r.current.Load()
	r.endSecrets(time.Now().Unix())
	if err := r.refresh(ctx); err != nil {
		r.compare.end()
		return err
	}
	if r.source.version != version || r.source.at != at || r.current.Load() != before {
		return nil // the page is read again
	}
	r.compare.end()
	_ = r.source.close()
	if err := r.refresh(ctx); err != nil {
		return err
	}
	if after := r.current.Load(); after != before {
		r.log.Warn("device database was changed in a way that its change log does not show; found by comparing all of it",
			"database", r.source.path, "devices", after.len)
	}
	return nil
}

// newPass opens a connection for one pass.
func (s *source) newPass(ctx context.Context, start *snapshot) (*pass, error) {
	own := &source{path: s.path, readOnly: s.readOnly, log: s.log, key: s.key}
	p := &pass{source: own, start: start, seen: make([]uint64, (start.serials+63)/64)}
	if err := own.connect(ctx, s.file); err != nil {
		return nil, err
	}
	err := sqlite.Read(ctx, own.conn, func() (err error) {
		if p.tables, err = describe(ctx, own.conn); err != nil {
			return err
		}
		if err := p.tables.check(len(migrations())); err != nil {
			return err
		}
		p.query = own.selectDevices(ctx, p.tables)
		return nil
	})
	if err != nil {
		_ = own.close()
		return nil, err
	}
	return p, nil
}

// page compares the next rows with the devices that are in force. same is false where they differ; done, whether these
// were the last ones.
func (p *pass) page(ctx context.Context, current *snapshot) (same, done bool, err error) {
	query, args := p.query, []any(nil)
	var end any
	if order := p.tables.order; order != "" {
		if end, err = p.end(ctx); err != nil {
			return false, false, err
		}
		if query += " WHERE TRUE"; p.last != nil {
			query, args = query+" AND d."+order+" > ?", append(args, p.last)
		}
		if end != nil {
			query, args = query+" AND d."+order+" <= ?", append(args, end)
		}
	}
	same = true
	d := new(delta)
	err = p.source.rows(ctx, func(r *row) {
		known := current.lookup(r.id)
		if known != nil && p.has(known.Serial) {
			return // the first row counts
		}
		put := len(d.put)
		p.source.take(d, known, r)
		switch {
		case d.keyless != nil || len(d.put) > put || known != nil && !r.taken:
			same = false
		case r.taken:
			p.mark(known.Serial)
		}
	}, query, args...)
	p.last = end
	return same, end == nil, err
}

// end returns the value of tables.order in the last row of the page behind p.last; nil: the page is the last one.
func (p *pass) end(ctx context.Context) (end any, err error) {
	where, args := "TRUE", []any(nil)
	if p.last != nil {
		where, args = p.tables.order+" > ?", []any{p.last}
	}
	err = p.source.conn.QueryRowContext(ctx, fmt.Sprintf("SELECT %s FROM devices WHERE %s ORDER BY %[1]s LIMIT 1 OFFSET %[3]d",
		p.tables.order, where, comparePage-1), args...).Scan(&end)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return end, err
}

// complete tells whether every device that was in force all the while was in the database.
func (p *pass) complete(current *snapshot) bool {
	if current == p.start {
		return p.count == current.len
	}
	for known := range current.all() {
		if !p.has(known.Serial) && p.start.lookup([]byte(known.ID)) == known {
			return false
		}
	}
	return true
}

func (p *pass) has(serial uint32) bool {
	return int(serial/64) < len(p.seen) && p.seen[serial/64]&(1<<(serial%64)) != 0
}

func (p *pass) mark(serial uint32) {
	for int(serial/64) >= len(p.seen) {
		p.seen = append(p.seen, 0)
	}
	if !p.has(serial) {
		p.seen[serial/64] |= 1 << (serial % 64)
		p.count++
	}
}
