package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// applicationID marks a database as one of dead letters: "MQDL".
const applicationID = 0x4d51444c

// letters is the first version. Times are Unix nanoseconds.
//
// The payloads stand apart: what lists, counts and marks letters neither reads nor writes them again. Totals are kept by
// triggers, so that asking for them does not depend on how many letters there are. The timestamp is a part of what
// distinguishes messages, because a device that uses a message id again, once the replay memory has forgotten it, has
// to do so with another one.
const letters = `
CREATE TABLE letters (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	device       TEXT    NOT NULL,
	message_id   TEXT    NOT NULL,
	timestamp    INTEGER NOT NULL,
	accepted_at  INTEGER NOT NULL,
	died_at      INTEGER NOT NULL,
	topic        TEXT    NOT NULL,
	traceparent  TEXT    NOT NULL,
	bytes        INTEGER NOT NULL,
	reason       TEXT    NOT NULL,
	status       INTEGER NOT NULL,
	attempts     INTEGER NOT NULL,
	deaths       INTEGER NOT NULL,
	requeued_at  INTEGER,
	excerpt      TEXT    NOT NULL,
	UNIQUE (device, message_id, timestamp)
);
CREATE INDEX letters_died ON letters (died_at);
CREATE INDEX letters_device_died ON letters (device, died_at);
CREATE INDEX letters_reason_died ON letters (reason, died_at);
CREATE INDEX letters_requeued ON letters (accepted_at) WHERE requeued_at IS NOT NULL;

CREATE TABLE payloads (
	letter  INTEGER PRIMARY KEY,
	payload BLOB NOT NULL
);

CREATE TABLE totals (
	letters INTEGER NOT NULL,
	bytes   INTEGER NOT NULL
);
INSERT INTO totals VALUES (0, 0);

CREATE TRIGGER letters_insert AFTER INSERT ON letters BEGIN
	UPDATE totals SET letters = letters + 1, bytes = bytes + NEW.bytes;
END;
CREATE TRIGGER letters_update AFTER UPDATE OF bytes ON letters WHEN NEW.bytes <> OLD.bytes BEGIN
	UPDATE totals SET bytes = bytes + NEW.bytes - OLD.bytes;
END;
CREATE TRIGGER letters_delete AFTER DELETE ON letters BEGIN
	DELETE FROM payloads WHERE letter = OLD.id;
	UPDATE totals SET letters = letters - 1, bytes = bytes - OLD.bytes;
END;

PRAGMA application_id = 0x4d51444c;`

// migrations returns the statements that lead from each PRAGMA user_version to the next, from 0 on.
func migrations() []string { return []string{letters, devices()} }

var (
	errForeign = errors.New("not a database of dead letters; move it away, or name another state_dir")
	errNewer   = errors.New("made by a newer version of this program")
)

// migrate brings a database up to the version the migrations lead to, each in a transaction of its own.
func migrate(ctx context.Context, conn *sql.Conn, migrations []string) error {
	if done, err := current(ctx, conn, len(migrations)); done || err != nil {
		return err
	}
	var pages int
	if err := conn.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return err
	}
	if pages == 0 { // what is dropped can be given back to the disk; to be said before there is anything
		if _, err := conn.ExecContext(ctx, "PRAGMA auto_vacuum = INCREMENTAL"); err != nil {
			return err
		}
	}
	for done := false; !done; {
		err := transaction(ctx, conn, func() error {
			var err error
			if done, err = current(ctx, conn, len(migrations)); done || err != nil {
				return err
			}
			version, err := number(ctx, conn, "PRAGMA user_version")
			if err != nil {
				return err
			}
			if _, err := conn.ExecContext(ctx, migrations[version]); err != nil {
				return fmt.Errorf("migration to version %d: %w", version+1, err)
			}
			_, err = conn.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version+1))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// current tells whether there is nothing to migrate, and refuses a database that cannot be used.
func current(ctx context.Context, conn *sql.Conn, known int) (bool, error) {
	application, err := number(ctx, conn, "PRAGMA application_id")
	if err != nil {
		return false, err
	}
	version, err := number(ctx, conn, "PRAGMA user_version")
	if err != nil {
		return false, err
	}
	if application != applicationID {
		tables, err := number(ctx, conn, "SELECT count(*) FROM sqlite_schema")
		if err != nil {
			return false, err
		}
		if application != 0 || version != 0 || tables != 0 {
			return false, errForeign
		}
		return false, nil
	}
	if version > int64(known) {
		return false, fmt.Errorf("%w: database version %d, newest known %d; upgrade this program, or use another state_dir",
			errNewer, version, known)
	}
	return version == int64(known), nil
}

func number(ctx context.Context, conn *sql.Conn, query string, args ...any) (n int64, err error) {
	err = conn.QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}

// transaction runs do between BEGIN IMMEDIATE and COMMIT, or ROLLBACK where it fails.
func transaction(ctx context.Context, conn *sql.Conn, do func() error) error {
	committed := false
	defer func() {
		// Neither a panic nor a BEGIN that was canceled, and yet took place, must leave the database locked.
		if !committed {
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
