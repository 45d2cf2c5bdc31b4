package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mattn/go-sqlite3"

	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/sqlite"
)

// What a Store's methods answer with where a caller may want to distinguish the cases.
var (
	ErrExists   = errors.New("device is already registered")
	ErrNotFound = errors.New("device is not registered")
	// ErrPublicKey is the error of what needs a secret, of a device with public keys.
	ErrPublicKey = errors.New("the device signs with a public key and has no secret")
	ErrInvalidID = errors.New("not a device id (" + deviceid.Rule + ")")
)

// storeBusy is how long a Store waits for another program's transaction.
const storeBusy = 5 * time.Second

// A Store changes the device database while others read and write it; a running Registry follows within a second. Each
// method is one short transaction, and fails where another program holds the database for more than five seconds,
// which a canceled context does not shorten. What is removed or replaced is overwritten in the file. Safe for
// concurrent use.
type Store struct {
	db   *sql.DB
	path string
	key  *Key // nil: secrets are stored as they are
}

// An Entry is what is known of a registered device, without its secrets. Times are to the second.
type Entry struct {
	ID                 string
	IDType             string    // "" of a text; otherwise SQLite's name of the type, and the row is no device: ID is the id as an SQL literal
	CreatedAt          time.Time // zero where the database has no number
	Disabled           bool
	SecretSince        time.Time   // when the newest secret was made; zero where that is not known
	OldSecrets         []OldSecret // that are still valid, newest first
	CertificateExpires time.Time   // of the newest certificate made for the device; zero where none was
	Pins               []Fingerprint
	Encrypted          bool        // the newest secret is
	Keys               []PublicKey // that are valid, newest first; of a device without a secret
}

// An OldSecret is one that has been replaced and is valid for a while yet.
type OldSecret struct{ Since, Ends time.Time }

// A Registration is a device to register.
type Registration struct {
	ID                 string
	Secret             Secret         // the HMAC key as it is: text, UTF-8 without NUL bytes, as other programs read it
	Key                *publickey.Key // the device signs with, in place of a secret; nil: none
	KeyOfCertificate   bool           // Key is the certificate\'s
	CertificateExpires time.Time      // zero: not known
	Pin                Fingerprint    // the only certificate to come with; zero: any
}

// OpenStore opens the database at path and migrates it. It makes one where there is none, with mode 0640 and the
// caller's owner and group: the broker's user must be able to read it.
func OpenStore(path string, options ...Option) (*Store, error) {
	if _, err := sqlite.Create(path, 0o640); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("device database: %w", err)
	}
	db, err := sqlite.Open(path, sqlite.Options{Busy: storeBusy, Synchronous: durable, SecureDelete: true, Immediate: true})
	if err != nil {
		return nil, fmt.Errorf("device database: %s: %w", path, err)
	}
	db.SetMaxOpenConns(1) // two of our own would only wait for each other
	s := &Store{db: db, path: path, key: apply(options).key}
	if err := s.prepare(context.Background()); err != nil {
		_ = db.Close()
		return nil, s.failed(err)
	}
	return s, nil
}

func (s *Store) prepare(ctx context.Context) error {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	found, err := describe(ctx, conn)
	if err != nil {
		return err
	}
	known := migrations()
	err = found.check(len(known))
	if errors.Is(err, errNoTable) {
		if found.foreign {
			return errors.New("has tables, but no devices table: not a device database")
		}
		_, err = conn.ExecContext(ctx, devicesTable)
	}
	if err == nil && found.timeless && found.devices {
		err = errNoTime
	}
	if err != nil || found.current(len(known)) {
		return err
	}
	return migrate(ctx, conn, known)
}

// Close releases the database.
func (s *Store) Close() error { return s.db.Close() }

// Add registers a device, enabled. The error is ErrInvalidID or ErrExists where one of them is the reason.
func (s *Store) Add(ctx context.Context, id string, secret Secret) error {
	return s.Register(ctx, Registration{ID: id, Secret: secret})
}

// Register is Add with what is known of the device's certificate.
func (s *Store) Register(ctx context.Context, r Registration) error {
	if err := r.check(); err != nil {
		return err
	}
	return s.change(ctx, r.ID, func(tx *sql.Tx) error {
		// Another program's table may have no key, and of two rows with one id the first counts.
		switch err := exists(ctx, tx, r.ID); {
		case err == nil:
			return ErrExists
		case !errors.Is(err, ErrNotFound):
			return err
		}
		return s.insert(ctx, tx, r, time.Now().Unix())
	})
}

// beginLarge begins a transaction that may not fit into the cache: its changes would be written at once, and keep readers out
// until the end.
func (s *Store) beginLarge(ctx context.Context) (*sql.Tx, error) {
	if _, err := s.db.ExecContext(ctx, "PRAGMA cache_spill = OFF"); err != nil {
		return nil, err
	}
	return s.db.BeginTx(ctx, nil)
}

// Import registers devices in one transaction, all or none, and returns how many. An error of the sequence ends it, as
// does the first device that Add would refuse.
func (s *Store) Import(ctx context.Context, registrations iter.Seq2[Registration, error]) (n int, err error) {
	tx, err := s.beginLarge(ctx)
	if err != nil {
		return 0, s.failed(err)
	}
	defer func() { _ = tx.Rollback() }()
	now := time.Now().Unix()
	for r, err := range registrations {
		if err == nil {
			err = r.check()
		}
		if err != nil {
			return 0, err
		}
		if err := s.insert(ctx, tx, r, now); err != nil {
			return 0, fmt.Errorf("device %q: %w", r.ID, err)
		}
		n++
	}
	if err := tx.Commit(); err != nil {
		return 0, s.failed(err)
	}
	return n, nil
}

func (r *Registration) check() error {
	if !deviceid.Valid(r.ID) {
		return fmt.Errorf("%q: %w", r.ID, ErrInvalidID)
	}
	return checkCredential(r)
}

func checkSecret(id string, secret Secret) error {
	if len(secret) == 0 {
		return fmt.Errorf("device %q: the secret is empty", id)
	}
	if why := noSecret(secret); why != "" {
		return fmt.Errorf("device %q: %s; use another", id, why)
	}
	switch text := string(secret); {
	case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
		return fmt.Errorf("device %q: the secret is not text; write its bytes as hexadecimal digits, and use those as the secret", id)
	case isSealed(secret):
		return fmt.Errorf("device %q: the secret begins like an encrypted one (%s); use another", id, envelopeMark)
	}
	return nil
}

func (s *Store) insert(ctx context.Context, tx *sql.Tx, r Registration, now int64) error {
	var err error
	if r.Key != nil {
		_, err = tx.ExecContext(ctx, "INSERT INTO devices (device_id, shared_secret, created_at) VALUES (?, randomblob(32), ?)", r.ID, now)
	} else {
		_, err = tx.ExecContext(ctx, "INSERT INTO devices (device_id, shared_secret, created_at) VALUES (?, ?, ?)",
			r.ID, s.key.seal(r.ID, r.Secret), now)
	}
	if e, ok := errors.AsType[sqlite3.Error](err); ok && e.ExtendedCode == sqlite3.ErrConstraintPrimaryKey {
		return ErrExists
	}
	if err != nil {
		return err
	}
	for _, table := range []string{"disabled_devices", "pinned_certificates", "device_details"} {
		if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE device_id = ?", r.ID); err != nil {
			return err
		}
	}
	if !r.CertificateExpires.IsZero() {
		if _, err := tx.ExecContext(ctx, "INSERT INTO device_details (device_id, certificate_expires) VALUES (?, ?)",
			r.ID, r.CertificateExpires.Unix()); err != nil {
			return err
		}
	}
	if r.Key != nil {
		if err := insertKey(ctx, tx, r.ID, r.Key, r.KeyOfCertificate, now); err != nil {
			return err
		}
	}
	if r.Pin != (Fingerprint{}) {
		_, err = tx.ExecContext(ctx, "INSERT INTO pinned_certificates (device_id, fingerprint) VALUES (?, ?)", r.ID, r.Pin.String())
	}
	return err
}

// Remove makes a device unknown. It takes any id, also one that is not valid; and where no device has it, the SQL literal
// of an id that is not text, as List has it. The error is ErrNotFound where there is no such device.
func (s *Store) Remove(ctx context.Context, id string) error {
	return s.change(ctx, id, func(tx *sql.Tx) error {
		removed := int64(0)
		for _, where := range []string{"device_id = ?", "typeof(device_id) <> 'text' AND quote(substr(device_id, 1, 64)) = ?"} {
			result, err := tx.ExecContext(ctx, "DELETE FROM devices WHERE "+where, id)
			if err != nil {
				return err
			}
			if removed, err = result.RowsAffected(); err != nil {
				return err
			}
			if removed > 0 {
				break
			}
		}
		if removed == 0 {
			return ErrNotFound
		}
		for _, table := range []string{"disabled_devices", "pinned_certificates"} { // triggers see to the others
			if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE device_id = ?", id); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetDisabled disables a device or enables it again; one that is so already stays so. Programs that only know the
// devices table neither see nor change it. The error is ErrNotFound where there is no such device.
func (s *Store) SetDisabled(ctx context.Context, id string, disabled bool) error {
	return s.change(ctx, id, func(tx *sql.Tx) error {
		err := exists(ctx, tx, id)
		if err != nil {
			return err
		}
		if disabled {
			_, err = tx.ExecContext(ctx, "INSERT OR IGNORE INTO disabled_devices (device_id, disabled_at) VALUES (?, ?)",
				id, time.Now().Unix())
		} else {
			_, err = tx.ExecContext(ctx, "DELETE FROM disabled_devices WHERE device_id = ?", id)
		}
		return err
	})
}

// change runs do in a transaction.
func (s *Store) change(ctx context.Context, id string, do func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return s.failed(err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := do(tx); err != nil {
		return fmt.Errorf("device %q: %w", id, err)
	}
	if err := tx.Commit(); err != nil {
		return s.failed(err)
	}
	return nil
}

func (s *Store) failed(err error) error {
	return sqlite.File{
		Holds: "device database", Path: s.path,
		Damaged: "name another file, or restore this one from a backup",
		Denied:  "run this as the file's owner or as root, who can write it and its directory",
	}.Failed(err)
}

// maxTime is the last second that has a year of four digits, which JSON's times need (RFC 3339).
const maxTime = "253402300799"

// seconds is a column as a time in seconds since 1970; NULL where it is none, in milliseconds for example.
func seconds(column string) string {
	return "CASE WHEN typeof(" + column + ") IN ('integer', 'real') AND " + column + " >= 0 AND " + column + " <= " + maxTime +
		" THEN CAST(" + column + " AS INTEGER) END"
}

var entryColumns = `d.device_id, ` + seconds("d.created_at") + `,
	x.device_id IS NOT NULL, ` + seconds("e.secret_since") + ", " + seconds("e.certificate_expires") + `,
	(SELECT group_concat(coalesce(` + seconds("o.since") + `, 0) || ':' || ` + seconds("o.expires_at") + `, ' ') FROM old_secrets AS o WHERE o.device_id = d.device_id),
	(SELECT group_concat(p.fingerprint, ' ') FROM pinned_certificates AS p WHERE p.device_id = d.device_id),
	typeof(d.shared_secret) = 'text' AND substr(d.shared_secret, 1, 10) = '` + envelopeMark + `', ` + entryKeys + `
	FROM devices AS d
	LEFT JOIN disabled_devices AS x ON x.device_id = d.device_id
	LEFT JOIN device_details AS e ON e.device_id = d.device_id`

func scanEntry(scan func(...any) error) (Entry, error) {
	var e Entry
	var created, since, expires sql.NullInt64
	var old, pins, public sql.NullString
	if err := scan(&e.ID, &created, &e.Disabled, &since, &expires, &old, &pins, &e.Encrypted, &public); err != nil {
		return Entry{}, err
	}
	set := func(t *time.Time, from sql.NullInt64) {
		if from.Valid {
			*t = time.Unix(from.Int64, 0)
		}
	}
	set(&e.CreatedAt, created)
	now := time.Now()
	if e.Keys = publicKeysOf(public.String, now); len(e.Keys) == 0 {
		set(&e.SecretSince, created)
		set(&e.SecretSince, since)
	}
	set(&e.CertificateExpires, expires)
	for field := range strings.FieldsSeq(old.String) {
		var since, ends int64
		if _, err := fmt.Sscanf(field, "%d:%d", &since, &ends); err == nil && now.Unix() < ends {
			e.OldSecrets = append(e.OldSecrets, OldSecret{time.Unix(since, 0), time.Unix(ends, 0)})
		}
	}
	slices.SortFunc(e.OldSecrets, func(a, b OldSecret) int { return b.Since.Compare(a.Since) })
	for field := range strings.FieldsSeq(pins.String) {
		if f, err := ParseFingerprint(field); err == nil {
			e.Pins = append(e.Pins, f)
		}
	}
	return e, nil
}

// Get returns what is known of a device. The error is ErrNotFound where there is no such device.
func (s *Store) Get(ctx context.Context, id string) (Entry, error) {
	e, err := scanEntry(s.db.QueryRowContext(ctx, "SELECT "+entryColumns+" WHERE d.device_id = ?", id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return Entry{}, fmt.Errorf("device %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return Entry{}, s.failed(err)
	}
	return e, nil
}

// List yields the devices in the order of their ids, or an error, which ends it. Rows with an id that is not valid are
// included, to be removed; quote them. Those with an id that is not text come last, 1,000 at most. It reads in pages and holds no lock while it yields, so a change
// made meanwhile may or may not be seen.
func (s *Store) List(ctx context.Context) iter.Seq2[Entry, error] {
	const page = 1000
	return func(yield func(Entry, error) bool) {
		last := ""
		for {
			entries, err := s.page(ctx, last, page)
			if err != nil {
				yield(Entry{}, s.failed(err))
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
				last = e.ID
			}
			if len(entries) < page {
				break
			}
		}
		entries, err := s.odd(ctx, page)
		if err != nil {
			yield(Entry{}, s.failed(err))
			return
		}
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// odd returns rows whose id is not text, up to n: devices are registered so only by mistake.
func (s *Store) odd(ctx context.Context, n int) ([]Entry, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT quote(substr(device_id, 1, 64)), typeof(device_id), "+seconds("d.created_at")+
		" FROM devices AS d WHERE typeof(device_id) <> 'text' LIMIT ?", n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var entries []Entry
	for rows.Next() {
		var e Entry
		var created sql.NullInt64
		if err := rows.Scan(&e.ID, &e.IDType, &created); err != nil {
			return nil, err
		}
		if created.Valid {
			e.CreatedAt = time.Unix(created.Int64, 0)
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}

// page returns up to n devices whose ids come after last.
func (s *Store) page(ctx context.Context, last string, n int) ([]Entry, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT "+entryColumns+
		" WHERE d.device_id > ? AND typeof(d.device_id) = 'text' ORDER BY d.device_id LIMIT ?", last, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var entries []Entry
	for rows.Next() {
		e, err := scanEntry(rows.Scan)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}
