package rotation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/mattn/go-sqlite3"
)

// applicationID marks a database of this package: "MQRO".
const applicationID = 0x4d51524f

// version is that of the tables, as PRAGMA user_version has it.
const version = 1

const tables = `
CREATE TABLE used_secrets (
	device_id TEXT    PRIMARY KEY,
	secret    BLOB    NOT NULL,
	noted_at  INTEGER NOT NULL
) WITHOUT ROWID;

PRAGMA application_id = 0x4d51524f;
PRAGMA user_version = 1;`

// writeTimeout bounds one write.
const writeTimeout = 5 * time.Second

var (
	errForeign = errors.New("not a database of this program; move it away, or name another state_dir")
	errNewer   = errors.New("made by a newer version of this program; upgrade this program, or move the file away")
)

// A database holds the ids of the secrets in use. For one goroutine.
type database struct{ db *sql.DB }

// Open opens the database at path, makes it where there is none with mode 0600, and starts the goroutine that writes to
// it. Close ends it. One that is damaged is put beside itself as path.damaged, and begun again: what is lost is known
// again with the next message of each device.
func Open(path string, o Options) (*Memory, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	db, used, err := open(path)
	if damaged(err) {
		o.Log.Error("the record of which secrets devices use is damaged; begun again, until the devices publish their commands are signed with old secrets",
			"database", path, "damaged", path+".damaged", "error", err)
		if err = errors.Join(os.Rename(path, path+".damaged"), removeJournal(path)); err == nil {
			db, used, err = open(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	m := &Memory{
		path: path, options: o, log: o.Log, db: db, used: used,
		kick: make(chan struct{}, 1), stop: make(chan struct{}),
		noted: make(map[string]note), dirty: make(map[string]*id),
	}
	m.prune()
	m.done.Go(m.run)
	return m, nil
}

func damaged(err error) bool {
	e, ok := errors.AsType[sqlite3.Error](err)
	return ok && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB)
}

func removeJournal(path string) error {
	if err := os.Remove(path + "-journal"); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// open also returns what the database holds.
func open(path string) (_ *database, used map[string]id, err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := file.Close(); err != nil {
		return nil, nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: "mode=rw&_synchronous=FULL&_txlock=immediate&_busy_timeout=5000"}
	db, err := sql.Open("sqlite3", dsn.String())
	if err != nil {
		return nil, nil, err
	}
	db.SetMaxOpenConns(1)
	d := &database{db}
	if used, err = d.load(context.Background()); err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return d, used, nil
}

func (d *database) load(ctx context.Context) (map[string]id, error) {
	var application, found, objects int64
	err := d.db.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
		(SELECT count(*) FROM sqlite_schema)`).Scan(&application, &found, &objects)
	switch {
	case err != nil:
		return nil, err
	case application == 0 && found == 0 && objects == 0:
		tx, err := d.db.BeginTx(ctx, nil)
		if err != nil {
			return nil, err
		}
		if _, err := tx.ExecContext(ctx, tables); err != nil {
			return nil, errors.Join(err, tx.Rollback())
		}
		if err := tx.Commit(); err != nil {
			return nil, err
		}
	case application != applicationID:
		return nil, errForeign
	case found > version:
		return nil, errNewer
	}
	rows, err := d.db.QueryContext(ctx, "SELECT device_id, secret FROM used_secrets WHERE length(secret) = 16")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	used := make(map[string]id)
	for rows.Next() {
		var device string
		var secret []byte
		if err := rows.Scan(&device, &secret); err != nil {
			return nil, err
		}
		if len(secret) == len(id{}) {
			used[device] = id(secret)
		}
	}
	return used, rows.Err()
}

// write stores the ids of devices, and deletes the devices with nil.
func (d *database) write(changes map[string]*id) error {
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	tx, err := d.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	now := time.Now().Unix()
	for device, used := range changes {
		if used == nil {
			_, err = tx.ExecContext(ctx, "DELETE FROM used_secrets WHERE device_id = ?", device)
		} else {
			_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO used_secrets VALUES (?, ?, ?)", device, used[:], now)
		}
		if err != nil {
			return err
		}
	}
	return tx.Commit()
}

func (d *database) close() error { return d.db.Close() }
