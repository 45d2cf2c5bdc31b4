package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mattn/go-sqlite3"
)

// What a Store's methods answer with where a caller may want to tell the cases apart.
var (
	ErrExists    = errors.New("device is already registered")
	ErrNotFound  = errors.New("device is not registered")
	ErrInvalidID = errors.New("not a device id (1 to 64 of A-Z a-z 0-9 . _ : -)")
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
}

// An Entry is what is known of a registered device beside its secrets.
type Entry struct {
	ID        string
	CreatedAt time.Time // to the second; zero where the database has no number
	Disabled  bool
}

// OpenStore opens the database at path and migrates it. It makes one where there is none, with mode 0640 and the
// caller's owner and group: the broker's user must be able to read it.
func OpenStore(path string) (*Store, error) {
	// SQLite would take the mode from the umask. The empty file is an empty database.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	switch {
	case err == nil:
		if err := errors.Join(file.Chmod(0o640), file.Close()); err != nil {
			return nil, fmt.Errorf("device database: %w", err)
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("device database: %w", err)
	}
	db, err := connect(path, url.Values{
		"mode":           {"rw"},
		"_busy_timeout":  {fmt.Sprint(storeBusy.Milliseconds())},
		"_secure_delete": {"true"},
		"_txlock":        {"immediate"},
	})
	if err != nil {
		return nil, fmt.Errorf("device database: %s: %w", path, err)
	}
	db.SetMaxOpenConns(1) // two of our own would only wait for each other
	s := &Store{db: db, path: path}
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
	if err != nil || found.current(len(known)) {
		return err
	}
	return migrate(ctx, conn, known)
}

// Close releases the database.
func (s *Store) Close() error { return s.db.Close() }

// Add registers a device, enabled. The secret is the HMAC key as it is, and must be text: UTF-8 without NUL bytes, as
// other programs read it. The error is ErrInvalidID or ErrExists where one of them is the reason.
func (s *Store) Add(ctx context.Context, id string, secret Secret) error {
	if !ValidID(id) {
		return fmt.Errorf("%q: %w", id, ErrInvalidID)
	}
	if len(secret) == 0 {
		return fmt.Errorf("device %q: the secret is empty", id)
	}
	if text := string(secret); !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return fmt.Errorf("device %q: the secret is not text; write its bytes as hexadecimal digits, and use those as the secret", id)
	}
	return s.change(ctx, id, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO devices (device_id, shared_secret, created_at) VALUES (?, ?, ?)",
			id, string(secret), time.Now().Unix())
		var e sqlite3.Error
		if errors.As(err, &e) && e.ExtendedCode == sqlite3.ErrConstraintPrimaryKey {
			return ErrExists
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM disabled_devices WHERE device_id = ?", id)
		return err
	})
}

// Remove makes a device unknown. It takes any id, also one that is not valid. The error is ErrNotFound where there is
// no such device.
func (s *Store) Remove(ctx context.Context, id string) error {
	return s.change(ctx, id, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, "DELETE FROM devices WHERE device_id = ?", id)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return ErrNotFound
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM disabled_devices WHERE device_id = ?", id)
		return err
	})
}

// SetDisabled disables a device or enables it again; one that is so already stays so. Programs that only know the
// devices table neither see nor change it. The error is ErrNotFound where there is no such device.
func (s *Store) SetDisabled(ctx context.Context, id string, disabled bool) error {
	return s.change(ctx, id, func(tx *sql.Tx) error {
		var exists bool
		if err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM devices WHERE device_id = ?)", id).Scan(&exists); err != nil {
			return err
		}
		if !exists {
			return ErrNotFound
		}
		var err error
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
	if isBusy(err) {
		return fmt.Errorf("device database: %s: %w; another program has not ended its transaction, try again", s.path, err)
	}
	return fmt.Errorf("device database: %s: %w", s.path, err)
}

const entryColumns = `d.device_id,
	CASE WHEN typeof(d.created_at) IN ('integer', 'real') THEN CAST(d.created_at AS INTEGER) END,
	x.device_id IS NOT NULL
	FROM devices AS d LEFT JOIN disabled_devices AS x ON x.device_id = d.device_id`

func scanEntry(scan func(...any) error) (Entry, error) {
	var e Entry
	var created sql.NullInt64
	if err := scan(&e.ID, &created, &e.Disabled); err != nil {
		return Entry{}, err
	}
	if created.Valid {
		e.CreatedAt = time.Unix(created.Int64, 0)
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
// included, for whoever has to remove them; quote them. It reads in pages and holds no lock while it yields, so a change
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
				return
			}
		}
	}
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
