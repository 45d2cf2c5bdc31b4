package rotation

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"time"

	"mosquitto-bouncer/plugin/loop"
	"mosquitto-bouncer/plugin/sqlite"
)

// applicationID marks a database of this package: "MQRO".
const applicationID = 0x4d51524f

const tables = `
CREATE TABLE used_secrets (
	device_id TEXT    PRIMARY KEY,
	secret    BLOB    NOT NULL,
	noted_at  INTEGER NOT NULL
) WITHOUT ROWID;

PRAGMA application_id = 0x4d51524f;`

// schema returns what the database holds, by version.
func schema() sqlite.Schema {
	return sqlite.Schema{Holds: "secrets in use", ApplicationID: applicationID, Migrations: []string{tables}}
}

// writeTimeout bounds one write.
const writeTimeout = 5 * time.Second

// A database holds the ids of the secrets in use. For one goroutine.
type database struct {
	db   *sql.DB
	conn *sql.Conn
}

func file(path string) sqlite.File { return sqlite.File{Holds: "secrets in use", Path: path} }

// Open opens the database at path, makes it where there is none with mode 0600, and starts the goroutine that writes to
// it. Close ends it. A damaged one is renamed to path.damaged, and a new one is started: what is lost is known
// again with the next message of each device.
func Open(path string, o Options) (*Memory, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	db, used, err := open(path)
	if sqlite.IsDamaged(err) {
		o.Log.Error("the record of which secrets devices use is damaged, and a new one is started; until a device publishes, its commands are signed with its old secret",
			"database", path, "damaged", path+".damaged", "error", err)
		if err = errors.Join(os.Rename(path, path+".damaged"), removeJournal(path)); err == nil {
			db, used, err = open(path)
		}
	}
	if err != nil {
		return nil, file(path).Failed(err)
	}
	m := &Memory{
		path: path, options: o, log: o.Log, db: db, used: used,
		noted: make(map[string]note), dirty: make(map[string]*id),
	}
	m.prune()
	m.pruned = time.Now()
	m.loop = loop.New(o.Log, "secrets in use", m.round)
	m.loop.Start()
	return m, nil
}

func removeJournal(path string) error {
	if err := os.Remove(path + "-journal"); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// open also returns what the database holds.
func open(path string) (d *database, used map[string]id, err error) {
	if err := sqlite.Ensure(path); err != nil {
		return nil, nil, err
	}
	d = new(database)
	if d.db, err = sqlite.Open(path, sqlite.Options{Busy: 5 * time.Second, Synchronous: "FULL"}); err != nil {
		return nil, nil, err
	}
	ctx := context.Background()
	if d.conn, err = d.db.Conn(ctx); err == nil {
		err = schema().Migrate(ctx, d.conn)
	}
	if err == nil {
		used, err = d.load(ctx)
	}
	if err != nil {
		return nil, nil, errors.Join(err, d.close())
	}
	return d, used, nil
}

func (d *database) load(ctx context.Context) (map[string]id, error) {
	rows, err := d.conn.QueryContext(ctx, "SELECT device_id, secret FROM used_secrets WHERE length(secret) = 16")
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
	now := time.Now().Unix()
	return sqlite.Write(ctx, d.conn, func() (err error) {
		for device, used := range changes {
			if used == nil {
				_, err = d.conn.ExecContext(ctx, "DELETE FROM used_secrets WHERE device_id = ?", device)
			} else {
				_, err = d.conn.ExecContext(ctx, "INSERT OR REPLACE INTO used_secrets VALUES (?, ?, ?)", device, used[:], now)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *database) close() error {
	var err error
	if d.conn != nil {
		err = d.conn.Close()
	}
	return errors.Join(err, d.db.Close())
}
