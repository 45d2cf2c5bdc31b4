package command

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// applicationID marks a database as one of commands: "MQCM".
const applicationID = 0x4d51434d

// commands is the first version. Times are Unix nanoseconds, but for expires, which is in seconds.
const commands = `
CREATE TABLE commands (
	id          TEXT    PRIMARY KEY,
	device      TEXT    NOT NULL,
	key         TEXT,
	body        BLOB    NOT NULL,
	state       TEXT    NOT NULL,
	created     INTEGER NOT NULL,
	expires     INTEGER NOT NULL,
	sent        INTEGER NOT NULL DEFAULT 0,
	finished    INTEGER NOT NULL DEFAULT 0,
	result      BLOB,
	dropped     INTEGER NOT NULL DEFAULT 0,
	UNIQUE (device, key)
) WITHOUT ROWID;
CREATE INDEX commands_unfinished ON commands (id) WHERE finished = 0;
CREATE INDEX commands_finished ON commands (finished) WHERE finished > 0;

PRAGMA application_id = 0x4d51434d;`

// migrations returns the statements that lead from each PRAGMA user_version to the next, from 0 on.
func migrations() []string { return []string{commands} }

var (
	errForeign = errors.New("not a database of commands; move it away, or name another state_dir")
	errNewer   = errors.New("made by a newer version of this program")
)

// migrate brings a database up to the version the migrations lead to, each in a transaction of its own. Only one process
// uses the database, so nobody migrates it at the same time.
func migrate(ctx context.Context, conn *sql.Conn, migrations []string) error {
	var application, version, tables int64
	for query, n := range map[string]*int64{
		"PRAGMA application_id":              &application,
		"PRAGMA user_version":                &version,
		"SELECT count(*) FROM sqlite_schema": &tables,
	} {
		if err := conn.QueryRowContext(ctx, query).Scan(n); err != nil {
			return err
		}
	}
	if application != applicationID && (application != 0 || version != 0 || tables != 0) {
		return errForeign
	}
	if version > int64(len(migrations)) {
		return fmt.Errorf("%w: database version %d, newest known %d; upgrade this program, or use another state_dir",
			errNewer, version, len(migrations))
	}
	for ; version < int64(len(migrations)); version++ {
		err := transaction(ctx, conn, func() error {
			if _, err := conn.ExecContext(ctx, migrations[version]); err != nil {
				return fmt.Errorf("migration to version %d: %w", version+1, err)
			}
			_, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version+1))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// transaction runs do between BEGIN IMMEDIATE and COMMIT, or ROLLBACK where it fails.
func transaction(ctx context.Context, conn *sql.Conn, do func() error) error {
	committed := false
	defer func() {
		if !committed { // a panic too must not leave the database locked
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
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
