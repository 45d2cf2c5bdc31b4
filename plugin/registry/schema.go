package registry

import (
	"context"
	"database/sql"
	"errors"

	"mosquitto-bouncer/plugin/sqlite"
)

// devicesTable is the table of the Python gateway.
const devicesTable = `
CREATE TABLE IF NOT EXISTS devices (
	device_id     TEXT PRIMARY KEY,
	shared_secret TEXT NOT NULL,
	created_at    INTEGER NOT NULL
)`

// additions is what this package needs in addition to the devices table. It may be applied again, where a program dropped and
// remade the devices table, and its triggers with it; the change log begins again then, for what was missed meanwhile.
//
// A change is its device's id and a random nonce, by which a reader finds out that the log is not the one it knew (a
// backup restored in place). The log keeps the latest 10,000 changes and prunes every 1,000; a reader that is further
// behind reads all devices again. It is never empty.
//
// INSERT OR REPLACE fires the INSERT trigger, and the DELETE trigger for the row replaced only with recursive_triggers;
// both name the same id, so either is enough. A disabled device stays so until it is enabled, whatever becomes of its row:
// a DELETE and an INSERT must not undo a revocation.
const additions = `
CREATE TABLE IF NOT EXISTS disabled_devices (
	device_id   TEXT PRIMARY KEY NOT NULL,
	disabled_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS device_changes (
	seq       INTEGER PRIMARY KEY AUTOINCREMENT,
	device_id TEXT,
	nonce     INTEGER NOT NULL DEFAULT (random())
);

CREATE TRIGGER IF NOT EXISTS devices_insert AFTER INSERT ON devices BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
END;
CREATE TRIGGER IF NOT EXISTS devices_update AFTER UPDATE OF device_id, shared_secret ON devices BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
	INSERT INTO device_changes (device_id) SELECT OLD.device_id WHERE OLD.device_id IS NOT NEW.device_id;
END;
CREATE TRIGGER IF NOT EXISTS devices_delete AFTER DELETE ON devices BEGIN
	INSERT INTO device_changes (device_id) VALUES (OLD.device_id);
END;
CREATE TRIGGER IF NOT EXISTS disabled_devices_insert AFTER INSERT ON disabled_devices BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
END;
CREATE TRIGGER IF NOT EXISTS disabled_devices_update AFTER UPDATE OF device_id ON disabled_devices BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
	INSERT INTO device_changes (device_id) VALUES (OLD.device_id);
END;
CREATE TRIGGER IF NOT EXISTS disabled_devices_delete AFTER DELETE ON disabled_devices BEGIN
	INSERT INTO device_changes (device_id) VALUES (OLD.device_id);
END;
CREATE TRIGGER IF NOT EXISTS device_changes_prune AFTER INSERT ON device_changes WHEN NEW.seq % 1000 = 0 BEGIN
	DELETE FROM device_changes WHERE seq <= NEW.seq - 10000;
END;

DELETE FROM device_changes;
INSERT INTO device_changes (device_id) VALUES (NULL);`

// rotation is what rotated secrets and certificates need, also in addition to the devices table. It may be applied again.
//
// The secret in the devices table is always the newest, so that another program that reads only that table has the one
// that signs. Those it replaced are in old_secrets until they end; they need not be removed for that. A program that inserts a
// device, by INSERT OR REPLACE too, begins again: no old secret outlives that. Pinned certificates do, for the reason for
// which disabled devices stay so.
const rotation = `
CREATE TABLE IF NOT EXISTS device_details (
	device_id           TEXT PRIMARY KEY NOT NULL,
	secret_since        INTEGER,
	certificate_expires INTEGER
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS old_secrets (
	device_id     TEXT NOT NULL,
	shared_secret TEXT NOT NULL,
	since         INTEGER NOT NULL,
	expires_at    INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS old_secrets_device ON old_secrets (device_id);

CREATE TABLE IF NOT EXISTS pinned_certificates (
	device_id   TEXT NOT NULL,
	fingerprint TEXT NOT NULL,
	PRIMARY KEY (device_id, fingerprint)
) WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS devices_insert_anew AFTER INSERT ON devices BEGIN
	DELETE FROM old_secrets WHERE device_id = NEW.device_id;
END;
CREATE TRIGGER IF NOT EXISTS devices_delete_details AFTER DELETE ON devices BEGIN
	DELETE FROM old_secrets WHERE device_id = OLD.device_id;
	DELETE FROM device_details WHERE device_id = OLD.device_id;
END;
CREATE TRIGGER IF NOT EXISTS old_secrets_insert AFTER INSERT ON old_secrets BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
END;
CREATE TRIGGER IF NOT EXISTS old_secrets_update AFTER UPDATE ON old_secrets BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
	INSERT INTO device_changes (device_id) SELECT OLD.device_id WHERE OLD.device_id IS NOT NEW.device_id;
END;
CREATE TRIGGER IF NOT EXISTS old_secrets_delete AFTER DELETE ON old_secrets BEGIN
	INSERT INTO device_changes (device_id) VALUES (OLD.device_id);
END;
CREATE TRIGGER IF NOT EXISTS pinned_certificates_insert AFTER INSERT ON pinned_certificates BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
END;
CREATE TRIGGER IF NOT EXISTS pinned_certificates_update AFTER UPDATE ON pinned_certificates BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
	INSERT INTO device_changes (device_id) SELECT OLD.device_id WHERE OLD.device_id IS NOT NEW.device_id;
END;
CREATE TRIGGER IF NOT EXISTS pinned_certificates_delete AFTER DELETE ON pinned_certificates BEGIN
	INSERT INTO device_changes (device_id) VALUES (OLD.device_id);
END;`

// publicKeys is what devices with public keys need, also in addition to the devices table. It may be applied again.
//
// Every device has a row in the devices table, also one with public keys, so that there is one list of devices. In the place
// of its secret it has a BLOB of random bytes that is given to no one. The other way, a list of its own for these
// devices, would make every reading of all devices two, and two programs could register one id twice. The BLOB keeps
// the row from being taken for one with a secret: programs that read text, the Python gateway and earlier versions of this
// one among them, find none and refuse the device. An empty text would be an HMAC key that everyone knows, and so would the
// public key; and a program that takes a BLOB for a key all the same has one that can at least not be guessed.
//
// A device has a secret or public keys, not both: if its row has a text, and there are keys, it is no device. The one key
// without an end is the newest; those it replaced are valid until they end, and need not be removed for that. One that is
// its certificate's (of_certificate) is replaced when the certificate is renewed with another key. A program that inserts a
// device, by INSERT OR REPLACE too, begins again: its keys are gone, as old secrets are.
const publicKeys = `
CREATE TABLE IF NOT EXISTS public_keys (
	device_id      TEXT NOT NULL,
	public_key     TEXT NOT NULL,
	of_certificate INTEGER NOT NULL DEFAULT 0,
	since          INTEGER NOT NULL,
	expires_at     INTEGER
);
CREATE INDEX IF NOT EXISTS public_keys_device ON public_keys (device_id);
CREATE UNIQUE INDEX IF NOT EXISTS public_keys_newest ON public_keys (device_id) WHERE expires_at IS NULL;

CREATE TRIGGER IF NOT EXISTS devices_insert_keys AFTER INSERT ON devices BEGIN
	DELETE FROM public_keys WHERE device_id = NEW.device_id;
END;
CREATE TRIGGER IF NOT EXISTS devices_delete_keys AFTER DELETE ON devices BEGIN
	DELETE FROM public_keys WHERE device_id = OLD.device_id;
END;
CREATE TRIGGER IF NOT EXISTS public_keys_insert AFTER INSERT ON public_keys BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
END;
CREATE TRIGGER IF NOT EXISTS public_keys_update AFTER UPDATE ON public_keys BEGIN
	INSERT INTO device_changes (device_id) VALUES (NEW.device_id);
	INSERT INTO device_changes (device_id) SELECT OLD.device_id WHERE OLD.device_id IS NOT NEW.device_id;
END;
CREATE TRIGGER IF NOT EXISTS public_keys_delete AFTER DELETE ON public_keys BEGIN
	INSERT INTO device_changes (device_id) VALUES (OLD.device_id);
END;`

var errNoTable = errors.New("no devices table; name another file, or create it with \"bouncerctl device add\"")

// migrations returns the statements that lead from each PRAGMA user_version to the next, from 0 on.
func migrations() []string { return []string{additions, rotation, publicKeys} }

// migrate brings a database up to the version the migrations lead to, each in a transaction of its own, and repairs one
// that has lost a part.
func migrate(ctx context.Context, conn *sql.Conn, migrations []string) error {
	for done := false; !done; {
		err := sqlite.Write(ctx, conn, func() error {
			found, err := describe(ctx, conn)
			if err != nil {
				return err
			}
			if err := found.check(len(migrations)); err != nil {
				return err
			}
			if found.version == len(migrations) {
				done = true
				if found.current(len(migrations)) {
					return nil
				}
				return found.repair(ctx, conn)
			}
			return sqlite.Step(ctx, conn, migrations)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
