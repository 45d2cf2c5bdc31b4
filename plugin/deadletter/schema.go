package deadletter

import "mosquitto-bouncer/plugin/sqlite"

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

// schema returns what the database holds, by version.
func schema() sqlite.Schema {
	return sqlite.Schema{Holds: "dead letters", ApplicationID: applicationID, Migrations: []string{letters, devices()}}
}
