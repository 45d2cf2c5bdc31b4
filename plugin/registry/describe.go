package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// A schema is what a database was found to hold.
type schema struct {
	version  int      // PRAGMA user_version
	devices  bool     // has the devices table, or a view of that name
	disabled bool     // has the table of disabled devices
	rotation bool     // has the tables of rotated secrets and of certificates
	logged   bool     // its changes are logged without exception
	foreign  bool     // has tables that are not of this package
	wrong    error    // a table of this package is another one's, or the devices table lacks a column; nil: neither
	strays   []string // triggers with the names of ours that are others, or on another table
	unique   bool     // no two rows of devices have one id
	timeless bool     // devices has no column created_at
	order    string   // the column by which devices can be read a page at a time; "": none
}

// current tells whether there is nothing to migrate or to repair.
func (s schema) current(version int) bool {
	return s.version == version && s.disabled && s.rotation && s.logged
}

// check refuses a database that cannot be used.
func (s schema) check(known int) error {
	if s.version > known {
		return fmt.Errorf("%w: database version %d, newest known %d; upgrade this program, or use another database",
			errNewer, s.version, known)
	}
	if !s.devices {
		return errNoTable
	}
	return s.wrong
}

// repair makes what is lacking, where a program has renamed, dropped or remade a table. The change log begins anew.
func (s schema) repair(ctx context.Context, conn *sql.Conn) error {
	for _, trigger := range s.strays {
		if _, err := conn.ExecContext(ctx, `DROP TRIGGER "`+trigger+`"`); err != nil {
			return err
		}
	}
	_, err := conn.ExecContext(ctx, additions+rotation)
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
	return objects(ctx, conn)
})

// objects returns the tables, views and triggers of a database by name, without SQLite's own.
func objects(ctx context.Context, conn *sql.Conn) (map[string]object, error) {
	rows, err := conn.QueryContext(ctx, `SELECT lower(m.name), m.type, lower(m.tbl_name), coalesce(m.sql, ''),
			CASE WHEN m.type <> 'trigger' THEN (SELECT group_concat(lower(c.name), char(10)) FROM pragma_table_xinfo(m.name) AS c) END
		FROM sqlite_schema AS m WHERE m.type IN ('table', 'view', 'trigger')`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	found := make(map[string]object)
	for rows.Next() {
		var name string
		var o object
		var columns sql.NullString
		if err := rows.Scan(&name, &o.kind, &o.table, &o.sql, &columns); err != nil {
			return nil, err
		}
		if columns.Valid {
			o.columns = strings.Split(columns.String, "\n")
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
	found, err := objects(ctx, conn)
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
				s.wrong = fmt.Errorf("table %s has no column %s, so it is not the one of this program; rename it, and this program makes its own", name, column)
			}
		}
	}
	has := func(name string) bool { _, any := found[name]; return any && found[name].kind != "trigger" }
	s.disabled = has("disabled_devices")
	s.rotation = has("device_details") && has("old_secrets") && has("pinned_certificates")
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

// errNoTime is the error of a devices table to which nobody can add a device.
var errNoTime = errors.New("the devices table has no column created_at; add it: ALTER TABLE devices ADD COLUMN created_at INTEGER NOT NULL DEFAULT 0")
