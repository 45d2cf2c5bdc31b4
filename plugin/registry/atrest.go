package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mattn/go-sqlite3"

	"mosquitto-bouncer/plugin/sqlite"
)

// Recrypt stores every secret again under the key of the store, or as plain text where it has none, and returns how many
// that were. Secrets encrypted before are opened with from, which may be nil where there are none. All are, or none;
// then the file is written again, so that no copy of what was replaced is left in it.
func (s *Store) Recrypt(ctx context.Context, from *Key) (n int, err error) {
	tx, err := s.beginLarge(ctx)
	if err != nil {
		return 0, s.failed(err)
	}
	defer func() { _ = tx.Rollback() }()
	for _, table := range []string{"devices", "old_secrets"} {
		changed, err := s.recryptTable(ctx, tx, table, from)
		if err != nil {
			return 0, fmt.Errorf("device database: %s: nothing was changed: %w", s.path, err)
		}
		n += changed
	}
	if err := tx.Commit(); err != nil {
		return 0, s.failed(err)
	}
	if err := s.clean(ctx); err != nil {
		return n, fmt.Errorf("the secrets were stored again, but the database file still contains the old ones; run the command again: %w", s.failed(err))
	}
	return n, nil
}

// clean leaves nothing in the database's files that is no longer in the database: a write-ahead log keeps what was
// replaced too, and says by a row, not by an error, that a reader has kept it from being emptied.
func (s *Store) clean(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, "VACUUM"); err != nil {
		return err
	}
	var busy, frames, moved int
	if err := s.db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &moved); err != nil {
		return err
	}
	if busy != 0 {
		return sqlite3.Error{Code: sqlite3.ErrBusy}
	}
	return nil
}

// recryptTable goes through a table in the order of its rows, a page at a time.
func (s *Store) recryptTable(ctx context.Context, tx *sql.Tx, table string, from *Key) (n int, err error) {
	const page = 1000
	type stored struct {
		row        any
		id, secret string
	}
	key := "rowid"
	var without bool
	if err := tx.QueryRowContext(ctx, "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND lower(name) = ?", table).Scan(&without); err != nil {
		return 0, err
	}
	last := any(int64(-1 << 63))
	if without {
		key, last = "device_id", ""
	}
	update, err := tx.PrepareContext(ctx, "UPDATE "+table+" SET shared_secret = ? WHERE "+key+" = ?")
	if err != nil {
		return 0, err
	}
	defer func() { _ = update.Close() }()
	for {
		rows, err := tx.QueryContext(ctx, fmt.Sprintf(`SELECT %s, device_id, shared_secret FROM %s WHERE %[1]s > ?
			AND typeof(device_id) = 'text' AND typeof(shared_secret) = 'text' AND shared_secret <> '' ORDER BY %[1]s LIMIT ?`, key, table), last, page)
		if err != nil {
			return 0, err
		}
		var read []stored
		for rows.Next() {
			var r stored
			if err := rows.Scan(&r.row, &r.id, &r.secret); err != nil {
				_ = rows.Close()
				return 0, err
			}
			read = append(read, r)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return 0, err
		}
		for _, r := range read {
			last = r.row
			if s.key == nil && !isSealed([]byte(r.secret)) {
				continue
			}
			if s.key != nil { // done already?
				if _, err := s.key.open([]byte(r.id), []byte(r.secret)); err == nil && isSealed([]byte(r.secret)) {
					continue
				}
			}
			secret, err := from.open([]byte(r.id), []byte(r.secret))
			if err != nil {
				return 0, fmt.Errorf("device %q: %w", r.id, err)
			}
			if _, err := update.ExecContext(ctx, s.key.seal(r.id, secret), r.row); err != nil {
				return 0, err
			}
			n++
		}
		if len(read) < page {
			return n, nil
		}
	}
}

// backupPages is how much is copied at a time: other programs write in between.
const backupPages = 2048

// Backup copies the database into a new file, mode 0600, while others read and write it, with SQLite's online backup:
// the copy is the database at one moment. The file must not exist; there is none after an error.
func (s *Store) Backup(ctx context.Context, file string) (err error) {
	made, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := made.Close(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file)
		}
	}()
	target, err := sqlite.Open(file, sqlite.Options{Synchronous: durable})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	source, err := s.db.Conn(ctx)
	if err != nil {
		return s.failed(err)
	}
	defer func() { _ = source.Close() }()
	to, err := target.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	err = to.Raw(func(to any) error {
		return source.Raw(func(from any) error {
			return copyPages(ctx, to.(*sqlite3.SQLiteConn), from.(*sqlite3.SQLiteConn))
		})
	})
	if err != nil {
		return s.failed(fmt.Errorf("backup to %s: %w", file, err))
	}
	if directory, err := os.Open(filepath.Dir(file)); err == nil {
		defer func() { _ = directory.Close() }()
		return directory.Sync()
	}
	return nil
}

func copyPages(ctx context.Context, to, from *sqlite3.SQLiteConn) error {
	backup, err := to.Backup("main", from, "main")
	if err != nil {
		return err
	}
	defer func() { _ = backup.Finish() }()
	left, stuck := -1, time.Now()
	for {
		done, err := backup.Step(backupPages)
		if err != nil || done {
			return err
		}
		if now := backup.Remaining(); now != left {
			left, stuck = now, time.Now()
		} else if time.Since(stuck) > storeBusy { // a writer that does not end
			return sqlite3.Error{Code: sqlite3.ErrBusy}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
