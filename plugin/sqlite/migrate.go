package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// ErrNewer is the error of a database whose version is above the newest one that this program knows.
var ErrNewer = errors.New("made by a newer version of this program")

// A Schema is what a database of one kind holds.
type Schema struct {
	Holds         string   // what it holds: "commands"
	ApplicationID int64    // PRAGMA application_id; the first migration sets it
	Migrations    []string // the statements that lead from each PRAGMA user_version to the next, from 0 on
}

// Migrate brings a database up to the newest version, each step in a transaction of its own. Other programs may migrate it
// at the same time. It refuses, and does not change, one that is of another kind or newer.
func (s Schema) Migrate(ctx context.Context, conn *sql.Conn) error {
	done := false
	err := Read(ctx, conn, func() (err error) {
		done, err = s.current(ctx, conn)
		return err
	})
	for err == nil && !done {
		err = Write(ctx, conn, func() (err error) {
			if done, err = s.current(ctx, conn); done || err != nil {
				return err
			}
			return Step(ctx, conn, s.Migrations)
		})
	}
	return err
}

// Step runs the migration that leads from the present version to the next one. It belongs in a transaction.
func Step(ctx context.Context, conn *sql.Conn, migrations []string) error {
	version, err := Number(ctx, conn, "PRAGMA user_version")
	if err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, migrations[version]); err != nil {
		return fmt.Errorf("migration to version %d: %w", version+1, err)
	}
	return setVersion(ctx, conn, version+1)
}

// current tells whether there is nothing to migrate, and refuses a database that cannot be used. It belongs in a
// transaction: between two of its queries another program may migrate.
func (s Schema) current(ctx context.Context, conn *sql.Conn) (bool, error) {
	application, err := Number(ctx, conn, "PRAGMA application_id")
	if err != nil {
		return false, err
	}
	version, err := Number(ctx, conn, "PRAGMA user_version")
	if err != nil {
		return false, err
	}
	newest := int64(len(s.Migrations))
	switch {
	case application != s.ApplicationID:
		objects, err := Number(ctx, conn, "SELECT count(*) FROM sqlite_schema")
		if err == nil && (application != 0 || version != 0 || objects != 0) {
			err = fmt.Errorf("not a database of %s; move it away, or name another state_dir", s.Holds)
		}
		return false, err
	case version > newest:
		return false, fmt.Errorf("%w: database version %d, newest known %d; upgrade this program, or use another state_dir",
			ErrNewer, version, newest)
	}
	return version == newest, nil
}
