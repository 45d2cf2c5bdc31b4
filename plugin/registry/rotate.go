package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// maxOldSecrets is how many replaced secrets or public keys of a device are valid at a time: each costs a signature check that fails.
const maxOldSecrets = 3

// ErrTooManySecrets is the error of a rotation beyond the number of secrets that may be valid at once.
var ErrTooManySecrets = fmt.Errorf("the device has %d old secrets that are still valid", maxOldSecrets)

// Rotate gives a device a new secret. Those it has stay valid with it, the one that is replaced until it ends, to the
// second, and older ones as long as they were to be; where ends is zero or not in the future, all of them end at once. The
// error is ErrNotFound, ErrTooManySecrets or ErrPublicKey where one of them is the reason.
func (s *Store) Rotate(ctx context.Context, id string, secret Secret, ends time.Time) error {
	if err := checkSecret(id, secret); err != nil {
		return err
	}
	return s.change(ctx, id, func(tx *sql.Tx) error {
		if err := hasKeys(ctx, tx, id); err != nil {
			return err
		}
		now := time.Now()
		grace := ends.Unix() > now.Unix()
		var replaced sql.NullString // not what is in its place, of a device that has lost its public keys
		var since sql.NullInt64
		err := tx.QueryRowContext(ctx, `SELECT CASE typeof(d.shared_secret) WHEN 'text' THEN d.shared_secret END, coalesce(`+seconds("e.secret_since")+", "+seconds("d.created_at")+`)
			FROM devices AS d LEFT JOIN device_details AS e ON e.device_id = d.device_id WHERE d.device_id = ?`, id).Scan(&replaced, &since)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		if !grace {
			_, err = tx.ExecContext(ctx, "DELETE FROM old_secrets WHERE device_id = ?", id)
		} else {
			_, err = tx.ExecContext(ctx, "DELETE FROM old_secrets WHERE device_id = ? AND expires_at <= ?", id, now.Unix())
		}
		if err != nil {
			return err
		}
		if grace {
			var valid int
			if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM old_secrets WHERE device_id = ?", id).Scan(&valid); err != nil {
				return err
			}
			if valid >= maxOldSecrets {
				return ErrTooManySecrets
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO old_secrets (device_id, shared_secret, since, expires_at) SELECT ?1, ?2, ?3, ?4 WHERE ?2 IS NOT NULL",
				id, replaced, since.Int64, ends.Unix()); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, "UPDATE devices SET shared_secret = ? WHERE device_id = ?", s.key.seal(id, secret), id); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO device_details (device_id, secret_since) VALUES (?, ?)
			ON CONFLICT (device_id) DO UPDATE SET secret_since = excluded.secret_since`, id, now.Unix())
		return err
	})
}

// SetCertificate notes that a device has a new certificate and when it expires. Where certificates are pinned, this one
// is with the others. The error is ErrNotFound where there is no such device.
func (s *Store) SetCertificate(ctx context.Context, id string, expires time.Time, f Fingerprint) error {
	return s.change(ctx, id, func(tx *sql.Tx) error { return setCertificate(ctx, tx, id, expires, f) })
}

func setCertificate(ctx context.Context, tx *sql.Tx, id string, expires time.Time, f Fingerprint) error {
	if err := exists(ctx, tx, id); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO device_details (device_id, certificate_expires) VALUES (?, ?)
		ON CONFLICT (device_id) DO UPDATE SET certificate_expires = excluded.certificate_expires`, id, expires.Unix()); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO pinned_certificates (device_id, fingerprint)
		SELECT ?, ? WHERE EXISTS (SELECT 1 FROM pinned_certificates WHERE device_id = ?)`, id, f.String(), id)
	return err
}

// Pin has a device accepted only with these certificates; with none, any of its CA is. The error is ErrNotFound where
// there is no such device.
func (s *Store) Pin(ctx context.Context, id string, certificates ...Fingerprint) error {
	return s.change(ctx, id, func(tx *sql.Tx) error {
		if err := exists(ctx, tx, id); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM pinned_certificates WHERE device_id = ?", id); err != nil {
			return err
		}
		for _, f := range certificates {
			if _, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO pinned_certificates (device_id, fingerprint) VALUES (?, ?)", id, f.String()); err != nil {
				return err
			}
		}
		return nil
	})
}

// exists returns ErrNotFound where there is no such device.
func exists(ctx context.Context, tx *sql.Tx, id string) error {
	var found bool
	if err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM devices WHERE device_id = ?)", id).Scan(&found); err != nil {
		return err
	}
	if !found {
		return ErrNotFound
	}
	return nil
}

// Secrets returns the secrets of a device that are valid now, the newest first. The error is ErrNotFound where there is no
// such device, ErrPublicKey where it has none.
func (s *Store) Secrets(ctx context.Context, id string) ([]Secret, error) {
	if keys, err := s.Keys(ctx, id); err != nil {
		return nil, err
	} else if len(keys) > 0 {
		return nil, fmt.Errorf("device %q: %w", id, ErrPublicKey)
	}
	rows, err := s.db.QueryContext(ctx, `SELECT shared_secret FROM (
		SELECT shared_secret, 1 AS newest, 0 AS row FROM devices WHERE device_id = ?1 AND typeof(shared_secret) = 'text'
		UNION ALL SELECT shared_secret, 0, rowid FROM old_secrets WHERE device_id = ?1 AND expires_at > ?2)
		ORDER BY newest DESC, row DESC`, id, time.Now().Unix())
	if err != nil {
		return nil, s.failed(err)
	}
	defer func() { _ = rows.Close() }()
	var secrets []Secret
	for rows.Next() {
		var stored string
		if err := rows.Scan(&stored); err != nil {
			return nil, s.failed(err)
		}
		secret, err := s.key.open([]byte(id), []byte(stored))
		if err != nil {
			return nil, fmt.Errorf("device %q: %w", id, err)
		}
		secrets = append(secrets, secret)
	}
	if err := rows.Err(); err != nil {
		return nil, s.failed(err)
	}
	if len(secrets) == 0 {
		return nil, fmt.Errorf("device %q: %w", id, ErrNotFound)
	}
	return secrets, nil
}
