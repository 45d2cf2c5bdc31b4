// Package sqlite is what the packages that keep something in SQLite have in common: making and opening a file,
// transactions, migrations, and what to do about an error. Each of those packages decides on its tables, its pragmas and
// who may read the file.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "github.com/mattn/go-sqlite3" // the driver
)

// Options of the connections to a database. The zero value of a field leaves SQLite's default.
type Options struct {
	ReadOnly     bool          // the file is opened only for reading; otherwise for writing too, where that is allowed
	Busy         time.Duration // how long a statement waits for another connection's transaction; 0: not at all
	Synchronous  string        // which commits survive a power failure: NORMAL, FULL or EXTRA
	Journal      string        // the journal mode: WAL, PERSIST or MEMORY
	QueryOnly    bool          // statements that write fail
	SecureDelete bool          // what is deleted is overwritten with zeros
	Immediate    bool          // sql.DB.BeginTx takes the lock for writing at once
}

// Open prepares for connections to the database at path, which must exist; the first use opens it.
func Open(path string, o Options) (*sql.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	query := url.Values{"mode": {"rw"}, "_busy_timeout": {fmt.Sprint(o.Busy.Milliseconds())}}
	if o.ReadOnly {
		query.Set("mode", "ro")
	}
	if o.Synchronous != "" {
		query.Set("_synchronous", o.Synchronous)
	}
	if o.Journal != "" {
		query.Set("_journal_mode", o.Journal)
	}
	if o.QueryOnly {
		query.Set("_query_only", "true")
	}
	if o.SecureDelete {
		query.Set("_secure_delete", "true")
	}
	if o.Immediate {
		query.Set("_txlock", "immediate")
	}
	return sql.Open("sqlite3", (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String())
}

// Create makes an empty file, which to SQLite is an empty database; SQLite would take the mode from the umask. The error
// is fs.ErrExist where there is a file already.
func Create(path string, mode fs.FileMode) (fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	return info, errors.Join(err, f.Chmod(mode), f.Close())
}

// Ensure makes an empty file with mode 0600 where there is none, and finds out whether the one that there is can be
// written: SQLite opens a file that cannot for reading, and says nothing.
func Ensure(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Read runs do in a transaction that reads: all of its queries see one state of the database.
func Read(ctx context.Context, conn *sql.Conn, do func() error) error {
	return transaction(ctx, conn, "BEGIN", do)
}

// Write runs do in a transaction that holds the lock for writing from its begin on. It is rolled back where do fails.
func Write(ctx context.Context, conn *sql.Conn, do func() error) error {
	return transaction(ctx, conn, "BEGIN IMMEDIATE", do)
}

func transaction(ctx context.Context, conn *sql.Conn, begin string, do func() error) error {
	committed := false
	defer func() {
		// Neither a panic nor a BEGIN that was canceled, and yet took place, must leave the database locked.
		if !committed {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	if _, err := conn.ExecContext(ctx, begin); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		return err
	}
	committed = true
	return nil
}

// Number returns the one integer of a query's one row.
func Number(ctx context.Context, conn *sql.Conn, query string, args ...any) (n int64, err error) {
	err = conn.QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}

// Probe is a write that changes nothing. Within a transaction it shows whether the database can be written.
func Probe(ctx context.Context, conn *sql.Conn) error {
	version, err := Number(ctx, conn, "PRAGMA user_version")
	if err != nil {
		return err
	}
	return setVersion(ctx, conn, version)
}

func setVersion(ctx context.Context, conn *sql.Conn, version int64) error {
	_, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version))
	return err
}
