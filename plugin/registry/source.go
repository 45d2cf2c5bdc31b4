package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"mosquitto-bouncer/plugin/sqlite"
)

// A source reads the device database over one connection of its own. For one goroutine.
type source struct {
	path string
	log  *slog.Logger
	key  *Key          // of encrypted secrets; nil: none
	busy time.Duration // how long a new connection waits for a writer
	// readOnly: nothing is changed. Otherwise the database is migrated, where it may be written.
	readOnly bool

	db   *sql.DB
	conn *sql.Conn // nil: none
	file fileStamp // what conn was opened on

	loaded     bool  // what follows is valid; for the life of conn
	version    int64 // PRAGMA data_version at the last reading
	stamp      stamp // of the files at the last reading
	wal        bool  // they are in WAL mode
	at         position
	unmigrated bool // reported that it could not be migrated
	unlocked   bool // reported that it is in WAL mode in a directory that may not be written
}

// A position is an entry of the change log; the zero value is none.
type position struct{ seq, nonce int64 }

// A delta leads from one snapshot to the next.
type delta struct {
	full    bool      // all rows were read
	put     []*Device // new or changed; without serials
	drop    []*Device // of the snapshot
	skipped int       // rows that are no devices
	sample  []skippedRow
	keyless error // why secrets could not be opened for want of their key, if any

	overwritten bool // the file changed, and SQLite's change counter did not
	unexplained bool // the database changed, and the change log may not say in what: REPLACE fires no trigger for the rows that are in its way
}

// changes returns what leads from the snapshot to what the database holds now, or nil where the database did not change
// since the last call. An error leaves the next call to find everything this one would have found.
func (s *source) changes(ctx context.Context, from *snapshot) (*delta, error) {
	now, err := stampOf(s.path)
	if err != nil {
		_ = s.close() // what comes back may be another one
		return nil, s.explain(err)
	}
	if s.conn != nil && !now.database.sameFile(s.file) {
		s.log.Info("device database was replaced", "database", s.path)
		_ = s.close()
	}
	// The file is looked at before it is opened: one that is replaced in between is opened again, not missed.
	if s.conn == nil {
		if err := s.connect(ctx, now.database); err != nil {
			return nil, s.explain(err)
		}
	}
	d, err := s.read(ctx, from, now)
	if err != nil {
		if !sqlite.IsBusy(err) {
			_ = s.close()
		}
		return nil, s.explain(err)
	}
	return d, nil
}

func (s *source) explain(err error) error { return fmt.Errorf("%s: %w", s.path, explain(s.path, err)) }

func (s *source) connect(ctx context.Context, file fileStamp) error {
	db, err := sqlite.Open(s.path, sqlite.Options{ReadOnly: s.readOnly, Busy: s.busy, Synchronous: durable})
	if err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		_ = db.Close()
		return err
	}
	s.db, s.conn, s.file = db, conn, file
	return nil
}

// durable has a transaction that was committed survive a power failure.
const durable = "FULL"

func (s *source) close() error {
	if s.conn == nil {
		return nil
	}
	err := errors.Join(s.conn.Close(), s.db.Close())
	s.db, s.conn, s.file = nil, nil, fileStamp{}
	s.forget()
	return err
}

// forget has the next call of changes read everything.
func (s *source) forget() { s.loaded, s.at, s.stamp = false, position{}, stamp{} }

// read is changes with the files open. now is their stamp, taken before.
func (s *source) read(ctx context.Context, from *snapshot, now stamp) (*delta, error) {
	// The version is read first: a commit between this and the reading makes the next poll look again, for nothing.
	version, err := s.dataVersion(ctx)
	if err != nil {
		return nil, err
	}
	known := s.loaded && version == s.version
	if known && now == s.stamp {
		return nil, nil
	}
	// What SQLite has committed since the stamp was taken is in the version, so a file that differs while the version does
	// not was written by another way. In WAL mode a checkpoint writes too, and changes nothing.
	if known && s.wal && now.wal.sameFile(s.stamp.wal) {
		s.stamp = now
		return &delta{unexplained: true}, nil
	}
	if known { // SQLite has the old pages in its cache
		_ = s.close()
		if err := s.connect(ctx, now.database); err != nil {
			return nil, err
		}
		if version, err = s.dataVersion(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	d, err := s.readLocked(ctx, from, version)
	if err != nil {
		return nil, err
	}
	d.overwritten = known
	return d, nil
}

func (s *source) dataVersion(ctx context.Context) (version int64, err error) {
	err = s.conn.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version)
	return version, err
}

// readLocked reads in one transaction, during which no program that keeps to SQLite's locks writes to the file.
func (s *source) readLocked(ctx context.Context, from *snapshot, version int64) (d *delta, err error) {
	var head position
	var mode string
	var rivals bool
	var before, after stamp
	err = sqlite.Read(ctx, s.conn, func() error {
		tables, err := describe(ctx, s.conn) // which locks
		if err != nil {
			return err
		}
		if err := tables.check(len(migrations())); err != nil {
			return err
		}
		if err := s.conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
			return err
		}
		rivals = tables.rivals
		if before, err = stampOf(s.path); err != nil {
			return err
		}
		if tables.logged && tables.disabled && tables.rotation && tables.keys {
			if head, err = s.head(ctx); err != nil {
				return err
			}
			if tables.unique {
				d, err = s.readChanges(ctx, from, head)
			}
		}
		if d == nil && err == nil {
			d, err = s.readAll(ctx, from, tables)
		}
		if err != nil {
			return err
		}
		after, err = stampOf(s.path)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case mode != "wal" && before != after:
		return nil, errOverwritten
	}
	d.unexplained = !d.full && (head == s.at || rivals)
	s.loaded, s.version, s.at, s.stamp, s.wal = true, version, head, before, mode == "wal"
	s.warnOfWAL()
	return d, nil
}

// warnOfWAL says, once, that a database in WAL mode can be read only as long as another program has it open.
func (s *source) warnOfWAL() {
	if !s.wal || directoryWritable(s.path) {
		s.unlocked = false
		return
	}
	if !s.unlocked {
		s.log.Warn("device database is in WAL mode in a directory that is not writable; it can be read only while a program with write access has it open",
			"database", s.path, "cure", WALCure(s.path))
	}
	s.unlocked = true
}

// migrate adds to the database what it lacks, where it may be written.
func (s *source) migrate(ctx context.Context) error {
	known := migrations()
	found, err := describe(ctx, s.conn)
	if err != nil {
		return err
	}
	if err := found.check(len(known)); err != nil {
		return err
	}
	if found.current(len(known)) {
		s.unmigrated = false
		return nil
	}
	err = migrate(ctx, s.conn, known)
	if ctx.Err() != nil {
		return err
	}
	if err != nil && !s.unmigrated {
		s.log.Warn("device database could not be migrated, so all of it is read whenever it changes; \"bouncerctl device add\" migrates it",
			"database", s.path, "error", err)
	}
	s.unmigrated = err != nil
	return nil
}

// head returns the last entry of the change log.
func (s *source) head(ctx context.Context) (position, error) {
	var p position
	err := s.conn.QueryRowContext(ctx, "SELECT seq, nonce FROM device_changes ORDER BY seq DESC LIMIT 1").Scan(&p.seq, &p.nonce)
	if errors.Is(err, sql.ErrNoRows) {
		return position{}, nil
	}
	return p, err
}

// readChanges reads the devices named in the change log since the last reading. It returns nil where the log does not
// reach back to that, or is another one.
func (s *source) readChanges(ctx context.Context, from *snapshot, head position) (*delta, error) {
	if s.at == (position{}) {
		return nil, nil
	}
	if head == s.at {
		return &delta{}, nil
	}
	var nonce int64
	err := s.conn.QueryRowContext(ctx, "SELECT nonce FROM device_changes WHERE seq = ?", s.at.seq).Scan(&nonce)
	if errors.Is(err, sql.ErrNoRows) || err == nil && nonce != s.at.nonce {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := new(delta)
	err = s.rows(ctx, func(r *row) {
		known := from.lookup(r.id)
		if r.exists {
			s.take(d, known, r)
		}
		if known != nil && (!r.exists || !r.taken) {
			d.drop = append(d.drop, known)
		}
	}, `SELECT CASE typeof(c.device_id) WHEN 'text' THEN c.device_id END, CASE typeof(d.shared_secret) WHEN 'text' THEN d.shared_secret END,
			d.shared_secret IS NOT NULL OR d.device_id IS NOT NULL, x.device_id IS NOT NULL, `+oldSecrets+", "+pins+", "+keys+", "+odd+`
		FROM (SELECT DISTINCT device_id FROM device_changes WHERE seq > ?) AS c
		LEFT JOIN devices AS d ON d.device_id IS c.device_id AND d.device_id IS c.device_id COLLATE BINARY
		LEFT JOIN disabled_devices AS x ON x.device_id = c.device_id`, s.at.seq)
	return d, err
}

// readAll reads every device. Of two rows with one id the first counts.
func (s *source) readAll(ctx context.Context, from *snapshot, tables schema) (*delta, error) {
	query := s.selectDevices(ctx, tables)
	var fresh map[string]struct{} // ids that are new; nil: none is there twice
	if !tables.unique {
		fresh = make(map[string]struct{})
		if tables.order != "" {
			query += " ORDER BY d." + tables.order
		}
	}
	d := &delta{full: true}
	found := make([]bool, from.serials)
	err := s.rows(ctx, func(r *row) {
		known := from.lookup(r.id)
		_, twice := fresh[string(r.id)]
		if twice || known != nil && found[known.Serial] {
			d.skip(r.id, "", "the id is there twice; the first row is used")
			return
		}
		s.take(d, known, r)
		switch {
		case r.taken && known != nil:
			found[known.Serial] = true
		case r.taken && fresh != nil:
			fresh[string(r.id)] = struct{}{}
		}
	}, query)
	if err != nil {
		return nil, err
	}
	for known := range from.all() {
		if !found[known.Serial] {
			d.drop = append(d.drop, known)
		}
	}
	return d, nil
}
