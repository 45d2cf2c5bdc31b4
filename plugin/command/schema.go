package command

import "mosquitto-bouncer/plugin/sqlite"

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

// schema returns what the database holds, by version.
func schema() sqlite.Schema {
	return sqlite.Schema{Holds: "commands", ApplicationID: applicationID, Migrations: []string{commands}}
}
