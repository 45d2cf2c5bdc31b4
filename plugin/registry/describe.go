package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"

	"mosquitto-bouncer/plugin/sqlite"
)

// A schema is what a database was found to hold.
type schema struct {
	version  int      // PRAGMA user_version
	devices  bool     // has the devices table, or a view of that name
	disabled bool     // has the table of disabled devices
	rotation bool     // has the tables of rotated secrets and of certificates
	keys     bool     // has the table of public keys
	logged   bool     // its changes are logged without exception
	foreign  bool     // has tables that are not of this package
	wrong    error    // a table of this package is another one's, or the devices table lacks a column; nil: neither
	strays   []string // triggers with the names of ours that are others, or on another table
	unique   bool     // no two rows of devices have one id
	rivals   bool     // a row of devices may conflict with another one by more than its id
	timeless bool     // devices has no column created_at
	order    string   // the column by which devices can be read a page at a time; "": none
}

// current tells whether there is nothing to migrate or to repair.
func (s schema) current(version int) bool {
	return s.version == version && s.disabled && s.rotation && s.keys && s.logged
}

// check refuses a database that cannot be used.
func (s schema) check(known int) error {
	switch {
	case s.version > known:
		return fmt.Errorf("%w: database version %d, newest known %d; upgrade this program, or use another database; if another program has set PRAGMA user_version, set it to 0",
			sqlite.ErrNewer, s.version, known)
	case s.version < 0:
		return fmt.Errorf("PRAGMA user_version is %d, which another program has set; set it to 0", s.version)
	}
	if !s.devices {
		return errNoTable
	}
	return s.wrong
}

// repair makes what is lacking, where a program has renamed, dropped or remade a table. The change log begins again.
func (s schema) repair(ctx context.Context, conn *sql.Conn) error {
	for _, trigger := range s.strays {
		if _, err := conn.ExecContext(ctx, `DROP TRIGGER "`+trigger+`"`); err != nil {
			return err
		}
	}
	_, err := conn.ExecContext(ctx, additions+rotation+";"+publicKeys)
	return err
}

// An object is a table, view or trigger as SQLite's schema table has it. Names are in lower case.
type object struct {
	kind, table string
	sql         string
	columns     []string // of a table or a view
}

// trigger tells whether o is the same trigger on the same table. SQLite rewrites a trigger whose table is renamed.
func (o object) trigger(want object) bool {
	return o.kind == "trigger" && o.table == want.table && o.sql == want.sql
}

// lacks returns the first column of want that o has not.
func (o object) lacks(want object) string {
	for _, column := range want.columns {
		found := false
		for _, c := range o.columns {
			found = found || c == column
		}
		if !found {
			return column
		}
	}
	return ""
}

// ours returns the tables and triggers of this package by name, the devices table among them, as SQLite has them.
var ours = sync.OnceValues(func() (map[string]object, error) {
	db, err := sql.Open("sqlite3", ":memory:")
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.ExecContext(ctx, devicesTable+";"+strings.Join(migrations(), ";")); err != nil {
		return nil, err
	}
	return objects(ctx, conn, func(string) bool { return true })
})

// objects returns the tables, views and triggers of a database by name, without SQLite's own. Only the columns of those
// that are wanted are looked up: another program's view of a table that is gone, or a table of a module that is not built
// in, is no concern of this package, and SQLite has an error for its columns.
func objects(ctx context.Context, conn *sql.Conn, wanted func(name string) bool) (map[string]object, error) {
	found, err := schemaTable(ctx, conn)
	if err != nil {
		return nil, err
	}
	for name, o := range found {
		if o.kind == "trigger" || !wanted(name) {
			continue
		}
		var columns sql.NullString
		err := conn.QueryRowContext(ctx, "SELECT group_concat(lower(name), char(10)) FROM pragma_table_xinfo(?)", name).Scan(&columns)
		if err != nil {
			return nil, fmt.Errorf("columns of %s: %w", name, err)
		}
		o.columns = strings.Split(columns.String, "\n")
		found[name] = o
	}
	return found, nil
}

// schemaTable is objects without columns.
func schemaTable(ctx context.Context, conn *sql.Conn) (map[string]object, error) {
	rows, err := conn.QueryContext(ctx, `SELECT lower(name), type, lower(tbl_name), coalesce(sql, '') FROM sqlite_schema
		WHERE type IN ('table', 'view', 'trigger')`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	found := make(map[string]object)
	for rows.Next() {
		var name string
		var o object
		if err := rows.Scan(&name, &o.kind, &o.table, &o.sql); err != nil {
			return nil, err
		}
		if !strings.HasPrefix(name, "sqlite_") {
			found[name] = o
		}
	}
	return found, rows.Err()
}

// describe finds out what a database holds: SQL knows no letter case in names, so neither does this.
func describe(ctx context.Context, conn *sql.Conn) (schema, error) {
	var s schema
	if err := conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&s.version); err != nil {
		return schema{}, err
	}
	own, err := ours()
	if err != nil {
		return schema{}, err
	}
	found, err := objects(ctx, conn, func(name string) bool { _, any := own[name]; return any })
	if err != nil {
		return schema{}, err
	}
	s.logged = true
	for name, want := range own {
		have, any := found[name]
		switch {
		case want.kind == "trigger":
			if any && !have.trigger(want) {
				s.strays = append(s.strays, name)
			}
			s.logged = s.logged && have.trigger(want)
		case any && name != "devices" && s.wrong == nil:
			if column := have.lacks(want); column != "" {
				s.wrong = fmt.Errorf("table %s has no column %s, so it does not belong to this program; rename it, and this program makes its own", name, column)
			}
		}
	}
	has := func(name string) bool { _, any := found[name]; return any && found[name].kind != "trigger" }
	s.disabled = has("disabled_devices")
	s.rotation = has("device_details") && has("old_secrets") && has("pinned_certificates")
	s.keys = has("public_keys")
	s.logged = s.logged && has("device_changes")
	for name, o := range found {
		_, own := own[name]
		s.foreign = s.foreign || !own && o.kind == "table"
	}
	if s.devices = has("devices"); s.devices {
		err = s.describeDevices(ctx, conn, found["devices"])
	}
	return s, err
}

// describeDevices looks at the devices table.
func (s *schema) describeDevices(ctx context.Context, conn *sql.Conn, devices object) error {
	for _, column := range []string{"device_id", "shared_secret"} {
		if devices.lacks(object{columns: []string{column}}) != "" {
			s.wrong = fmt.Errorf("the devices table has no column %s; rename the column that holds it (ALTER TABLE devices RENAME COLUMN ... TO %s)", column, column)
			return nil
		}
	}
	s.timeless = devices.lacks(object{columns: []string{"created_at"}}) != ""
	var kind string
	var withoutRowID bool
	err := conn.QueryRowContext(ctx, "SELECT type, wr FROM pragma_table_list WHERE schema = 'main' AND lower(name) = 'devices'").Scan(&kind, &withoutRowID)
	if err != nil {
		return err
	}
	var key sql.NullString
	err = conn.QueryRowContext(ctx, "SELECT group_concat(lower(name), char(10)) FROM pragma_table_xinfo('devices') WHERE pk > 0").Scan(&key)
	if err != nil {
		return err
	}
	s.unique = key.String == "device_id"
	err = conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pragma_index_list('devices') AS i WHERE i."unique"
		AND (SELECT group_concat(lower(c.name), char(10)) FROM pragma_index_info(i.name) AS c) IS NOT 'device_id')`).Scan(&s.rivals)
	if err != nil {
		return err
	}
	s.rivals = s.rivals || key.Valid && !s.unique
	if !s.unique {
		err = conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pragma_index_list('devices') AS i WHERE i."unique" AND NOT i.partial
			AND (SELECT group_concat(lower(c.name), char(10)) FROM pragma_index_info(i.name) AS c) = 'device_id')`).Scan(&s.unique)
		if err != nil {
			return err
		}
	}
	switch {
	case kind == "table" && !withoutRowID && devices.lacks(object{columns: []string{"_rowid_"}}) != "":
		s.order = "_rowid_"
	case kind == "table" && key.String == "device_id":
		s.order = "device_id"
	}
	return nil
}

// errNoTime is the error of a devices table to which no device can be added.
var errNoTime = errors.New("the devices table has no column created_at; add it: ALTER TABLE devices ADD COLUMN created_at INTEGER NOT NULL DEFAULT 0")
