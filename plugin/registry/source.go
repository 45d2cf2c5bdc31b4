package registry

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/text/encoding/unicode"

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
	// The file is looked at before it is opened: one that is replaced in between is opened once more, not missed.
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

// durable has a transaction that was committed survive a failure of the power.
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
		if tables.logged && tables.disabled && tables.rotation {
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
		s.log.Warn("device database is in WAL mode in a directory that may not be written; it can be read only as long as a program that may write it has it open",
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
		s.log.Warn("device database could not be migrated, so it is read whole whenever it changes; \"bouncerctl device add\" migrates it",
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
			d.shared_secret IS NOT NULL OR d.device_id IS NOT NULL, x.device_id IS NOT NULL, `+oldSecrets+", "+pins+", "+odd+`
		FROM (SELECT DISTINCT device_id FROM device_changes WHERE seq > ?) AS c
		LEFT JOIN devices AS d ON d.device_id IS c.device_id AND d.device_id IS c.device_id COLLATE BINARY
		LEFT JOIN disabled_devices AS x ON x.device_id = c.device_id`, s.at.seq)
	return d, err
}

// odd is what is said of a row whose id or secret is not text: their types and the id as an SQL literal; NULL of others.
const odd = `CASE WHEN typeof(d.device_id) = 'text' AND typeof(d.shared_secret) = 'text' THEN NULL
	ELSE typeof(d.device_id) || ' ' || typeof(d.shared_secret) || ' ' || quote(substr(d.device_id, 1, 64)) END`

// What few devices have, as one text each, NULL where there is none: "since:expires:A:SECRET" of each old secret, the one
// that was replaced last first, and the fingerprints of pinned certificates. A and SECRET are the letter A and the secret
// in hexadecimal, in the encoding of the database: UTF-8 or UTF-16.
const (
	oldSecrets = `(SELECT group_concat(o.since || ':' || o.expires_at || ':' || hex('A') || ':' || hex(o.shared_secret), ' ' ORDER BY o.rowid DESC)
		FROM old_secrets AS o WHERE o.device_id = d.device_id)`
	pins = `(SELECT group_concat(p.fingerprint, ' ') FROM pinned_certificates AS p WHERE p.device_id = d.device_id)`
)

// selectDevices is the query for every device, to which a condition and an order may be added.
func (s *source) selectDevices(ctx context.Context, tables schema) string {
	disabled, join, old, pinned := "FALSE", "", "NULL", "NULL"
	if tables.disabled {
		disabled, join = "x.device_id IS NOT NULL", " LEFT JOIN disabled_devices AS x ON x.device_id = d.device_id"
	}
	if tables.disabled && tables.rotation && s.anyRare(ctx) {
		old, pinned = oldSecrets, pins
	}
	return `SELECT CASE typeof(d.device_id) WHEN 'text' THEN d.device_id END, CASE typeof(d.shared_secret) WHEN 'text' THEN d.shared_secret END,
		TRUE, ` + disabled + ", " + old + ", " + pinned + ", " + odd + " FROM devices AS d" + join
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
			d.skip(r.id, "", "the id is there twice, and the first row counts")
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

// A row is one device as it is stored. Its slices are valid during a call only.
type row struct {
	id, secret       sql.RawBytes // nil where they are not text
	exists, disabled bool         // there is such a row in devices; in disabled_devices
	old, pins        sql.RawBytes // see oldSecrets and pins
	odd              sql.RawBytes // see odd

	taken bool // it is a device
}

// notText says why a row whose id or secret is not text is no device.
func (r *row) notText() (id, why string) {
	parts := strings.SplitN(string(r.odd), " ", 3)
	if len(parts) != 3 {
		return "", "not a device id"
	}
	if parts[0] == "text" {
		return "", "the secret is of type " + parts[1] + ", not text"
	}
	why = "the id is of type " + parts[0] + ", not text"
	if parts[0] == "blob" {
		why += "; run: UPDATE devices SET device_id = CAST(device_id AS TEXT) WHERE typeof(device_id) = 'blob'"
	}
	return parts[2], why
}

// anyRare tells whether any device has an old secret or a pinned certificate: to look for them of each of a million devices
// takes a second.
func (s *source) anyRare(ctx context.Context) (any bool) {
	err := s.conn.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM old_secrets) OR EXISTS (SELECT 1 FROM pinned_certificates)").Scan(&any)
	return any || err != nil
}

// rows calls do for each row of a query.
func (s *source) rows(ctx context.Context, do func(*row), query string, args ...any) error {
	rows, err := s.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var r row
	for rows.Next() {
		if err := rows.Scan(&r.id, &r.secret, &r.exists, &r.disabled, &r.old, &r.pins, &r.odd); err != nil {
			return err
		}
		r.taken = false
		do(&r)
	}
	return rows.Err()
}

// take takes up one row of the devices table, and says in the row whether it is a device. known is what the snapshot has
// by that id, or nil.
func (s *source) take(d *delta, known *Device, r *row) {
	switch {
	case r.odd != nil:
		id, why := r.notText()
		d.skip(r.id, id, why)
		return
	case !validID(r.id):
		d.skip(r.id, "", "not a device id")
		return
	case len(r.secret) == 0:
		d.skip(r.id, "", "no secret")
		return
	}
	secret, err := s.key.open(r.id, r.secret)
	switch {
	case isKeyMissing(err):
		d.keyless = err
		if known == nil {
			return // it may well be a device
		}
		secret = known.Secrets[0] // as long as it is not known what replaced it; a revocation counts all the same
	case err != nil:
		d.skip(r.id, "", err.Error())
		return
	}
	if why := noSecret(secret); why != "" {
		d.skip(r.id, "", why)
		return
	}
	r.taken = true
	if r.old == nil && r.pins == nil && known != nil && known.rare == nil &&
		known.Disabled == r.disabled && bytes.Equal(known.Secrets[0], secret) {
		return // nearly all of them, when everything is read
	}
	device := newDevice(r.id, secret, r.disabled)
	if r.old != nil || r.pins != nil {
		if err := s.takeRare(device, r); err != nil {
			d.skip(r.id, "", err.Error())
			r.taken = false
			return
		}
	}
	if known == nil || !known.same(device) {
		d.put = append(d.put, device)
	}
}

// takeRare adds old secrets that have not ended, and pinned certificates. An old secret that cannot be opened is left
// out; a fingerprint that is none would leave the device without its pin, so it is an error.
func (s *source) takeRare(device *Device, r *row) error {
	now := time.Now().Unix()
	var extra rare
	for field := range strings.FieldsSeq(string(r.old)) {
		parts := strings.SplitN(field, ":", 4)
		if len(parts) != 4 {
			continue
		}
		stored, err := textOfHex(parts[2], parts[3])
		if err != nil {
			continue
		}
		end, err := strconv.ParseInt(parts[1], 10, 64)
		if err != nil || end <= now {
			continue
		}
		if secret, err := s.key.open(r.id, stored); err == nil && noSecret(secret) == "" {
			device.Secrets = append(device.Secrets, secret)
			extra.ends = append(extra.ends, end)
		}
	}
	for text := range strings.FieldsSeq(string(r.pins)) {
		f, err := ParseFingerprint(text)
		if err != nil {
			return fmt.Errorf("the pinned certificate is %w", err)
		}
		extra.pins = append(extra.pins, f)
	}
	slices.SortFunc(extra.pins, func(a, b Fingerprint) int { return bytes.Compare(a[:], b[:]) })
	if len(extra.ends) > 0 || len(extra.pins) > 0 {
		device.rare = &extra
	}
	return nil
}

// textOfHex decodes a text of the database from hexadecimal. letterA is "A" in the same encoding.
func textOfHex(letterA, text string) ([]byte, error) {
	stored, err := hex.DecodeString(text)
	if err != nil {
		return nil, err
	}
	switch letterA {
	case "4100":
		return unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM).NewDecoder().Bytes(stored)
	case "0041":
		return unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM).NewDecoder().Bytes(stored)
	}
	return stored, nil
}

// newDevice makes a device in three allocations, of which a million are to fit in memory.
func newDevice(id, secret []byte, disabled bool) *Device {
	d := new(struct {
		Device
		secrets [1]Secret
	})
	d.secrets[0] = bytes.Clone(secret)
	d.Device = Device{ID: string(id), Secrets: d.secrets[:], Disabled: disabled}
	return &d.Device
}
