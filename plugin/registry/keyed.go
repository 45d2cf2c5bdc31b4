package registry

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/publickey"
)

// The errors of RotateKey.
var (
	ErrTooManyKeys = fmt.Errorf("the device has %d old public keys that are still valid", maxOldSecrets)
	ErrNoPublicKey = errors.New("the device has a secret and no public key")
	ErrSameKey     = errors.New("the device has this public key already")
)

// Keys returns the public keys in force, newest first; none of a device with secrets. They are not to be changed.
func (d *Device) Keys() []*publickey.Key {
	if d.rare == nil {
		return nil
	}
	return d.rare.keys
}

// takeKeyed is take for a row with public keys, whose id is text.
func (s *source) takeKeyed(d *delta, known *Device, r *row) {
	if !deviceid.Valid(r.id) {
		d.skip(r.id, "", "not a device id")
		return
	}
	if r.secret != nil {
		d.skip(r.id, "", "it has a secret and public keys; register it again with one of them")
		return
	}
	device := &Device{ID: string(r.id), Disabled: r.disabled}
	extra, err := takeKeys(known, string(r.keys))
	if err == nil {
		err = extra.takePins(r)
	}
	if err != nil {
		d.skip(r.id, "", err.Error())
		return
	}
	device.rare = extra
	r.taken = true
	d.putChanged(known, device)
}

// takeKeys reads what the query keys gives: the newest key, and those with an end that has not come. One with an end that
// cannot be read is left out.
func takeKeys(known *Device, text string) (*rare, error) {
	now := time.Now().Unix()
	extra := new(rare)
	for field := range strings.FieldsSeq(text) {
		ends, encoded, _ := strings.Cut(field, ":")
		newest := len(extra.keys) == 0
		if newest != (ends == "") {
			if newest {
				break
			}
			continue
		}
		end := int64(0)
		if !newest {
			var err error
			if end, err = strconv.ParseInt(ends, 10, 64); err != nil || end <= now {
				continue
			}
		}
		key, err := readKey(known, encoded)
		switch {
		case err == nil && newest:
			extra.keys = append(extra.keys, key)
		case err == nil:
			extra.keys, extra.ends = append(extra.keys, key), append(extra.ends, end)
		case newest:
			return nil, err
		}
	}
	if len(extra.keys) == 0 {
		return nil, errors.New("none of its public keys is without an end")
	}
	return extra, nil
}

// readKey reads a key. One that is known is not read again, which takes much longer than to recognise it.
func readKey(known *Device, encoded string) (*publickey.Key, error) {
	der, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, errors.New("its public key is not in base64")
	}
	if known != nil {
		fingerprint := publickey.FingerprintOf(der)
		for _, key := range known.Keys() {
			if key.Fingerprint() == fingerprint {
				return key, nil
			}
		}
	}
	return publickey.Parse(der)
}

func sameKeys(d, o *Device) bool {
	a, b := d.Keys(), o.Keys()
	return slices.EqualFunc(a, b, (*publickey.Key).Equal) && (len(a) < 2 || slices.Equal(d.rare.ends, o.rare.ends))
}

// insertKey gives a device its newest public key.
func insertKey(ctx context.Context, tx *sql.Tx, id string, key *publickey.Key, ofCertificate bool, now int64) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO public_keys (device_id, public_key, of_certificate, since) VALUES (?, ?, ?, ?)",
		id, key.Text(), ofCertificate, now)
	return err
}

// A PublicKey is what an Entry has of a key.
type PublicKey struct {
	Key   *publickey.Key
	Since time.Time
	Ends  time.Time // zero: it does not, being the newest
	// OfCertificate: it is the key of the device's certificate, and is renewed with that.
	OfCertificate bool
}

// entryKeys is the column for PublicKeys: "certificate:since:expires:KEY" of each.
var entryKeys = `(SELECT group_concat((k.of_certificate IS 1) || ':' || coalesce(` + seconds("k.since") + `, 0) || ':' || coalesce(k.expires_at, '') || ':' || k.public_key, ' '
	ORDER BY k.expires_at IS NOT NULL, k.rowid DESC) FROM public_keys AS k WHERE k.device_id = d.device_id)`

// publicKeysOf reads the keys of entryKeys that are in force; what the gateway would not take is left out.
func publicKeysOf(text string, now time.Time) (keys []PublicKey) {
	for field := range strings.FieldsSeq(text) {
		certificate, rest, _ := strings.Cut(field, ":")
		since, rest, _ := strings.Cut(rest, ":")
		ends, encoded, _ := strings.Cut(rest, ":")
		key, err := readKey(nil, encoded)
		if err != nil {
			continue
		}
		from, err := strconv.ParseInt(since, 10, 64)
		if err != nil {
			continue
		}
		k := PublicKey{Key: key, Since: time.Unix(from, 0), OfCertificate: certificate == "1"}
		if ends != "" {
			end, err := strconv.ParseInt(ends, 10, 64)
			if err != nil || end <= now.Unix() {
				continue
			}
			k.Ends = time.Unix(end, 0)
		}
		keys = append(keys, k)
	}
	return keys
}

// hasKeys returns ErrPublicKey where a device has public keys.
func hasKeys(ctx context.Context, tx *sql.Tx, id string) error {
	var keyed bool
	if err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM public_keys WHERE device_id = ?)", id).Scan(&keyed); err != nil {
		return err
	}
	if keyed {
		return ErrPublicKey
	}
	return nil
}

// Keys returns the public keys of a device that are valid now, the newest first; none of a device with a secret. The error is
// ErrNotFound where there is no such device.
func (s *Store) Keys(ctx context.Context, id string) ([]*publickey.Key, error) {
	e, err := s.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	keys := make([]*publickey.Key, len(e.Keys))
	for i := range e.Keys {
		keys[i] = e.Keys[i].Key
	}
	return keys, nil
}

// RotateKey gives a device with a public key a new one, as Rotate does with secrets. With the key that it has, and no grace,
// the old ones end. The error is ErrNotFound, ErrTooManyKeys, ErrNoPublicKey or ErrSameKey where one of them is the reason.
func (s *Store) RotateKey(ctx context.Context, id string, key *publickey.Key, ends time.Time) error {
	return s.change(ctx, id, func(tx *sql.Tx) error {
		if err := exists(ctx, tx, id); err != nil {
			return err
		}
		err := rotateKey(ctx, tx, id, key, false, ends)
		if errors.Is(err, ErrSameKey) && ends.Unix() <= time.Now().Unix() {
			return endOldKeys(ctx, tx, id)
		}
		return err
	})
}

// RenewCertificate is SetCertificate with the certificate's key: if the device signs with the key of its certificate, it
// signs with this one from now on, and with the old one until the old certificate expires.
func (s *Store) RenewCertificate(ctx context.Context, id string, expires time.Time, f Fingerprint, key func() (*publickey.Key, error)) error {
	return s.change(ctx, id, func(tx *sql.Tx) error {
		var ofCertificate bool
		var until sql.NullInt64
		err := tx.QueryRowContext(ctx, `SELECT
			EXISTS (SELECT 1 FROM public_keys WHERE device_id = ?1 AND expires_at IS NULL AND of_certificate IS 1),
			(SELECT `+seconds("certificate_expires")+` FROM device_details WHERE device_id = ?1)`, id).Scan(&ofCertificate, &until)
		if err == nil {
			err = setCertificate(ctx, tx, id, expires, f)
		}
		if err != nil || !ofCertificate {
			return err
		}
		k, err := key()
		if err != nil {
			return err
		}
		if err := rotateKey(ctx, tx, id, k, true, time.Unix(until.Int64, 0)); !errors.Is(err, ErrSameKey) {
			return err
		}
		return nil
	})
}

// rotateKey makes a key the newest one of a device. Where ends is not in the future, the old ones end at once.
func rotateKey(ctx context.Context, tx *sql.Tx, id string, key *publickey.Key, ofCertificate bool, ends time.Time) error {
	now := time.Now().Unix()
	var newest string
	err := tx.QueryRowContext(ctx, "SELECT public_key FROM public_keys WHERE device_id = ? AND expires_at IS NULL", id).Scan(&newest)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return ErrNoPublicKey
	case err != nil:
		return err
	case newest == key.Text():
		return ErrSameKey
	}
	grace := ends.Unix() > now
	if _, err := tx.ExecContext(ctx, "DELETE FROM public_keys WHERE device_id = ? AND (public_key = ? OR expires_at <= ? OR NOT ?)",
		id, key.Text(), now, grace); err != nil {
		return err
	}
	if grace {
		var valid int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM public_keys WHERE device_id = ?", id).Scan(&valid); err != nil {
			return err
		}
		if valid > maxOldSecrets { // with the newest
			return ErrTooManyKeys
		}
		if _, err := tx.ExecContext(ctx, "UPDATE public_keys SET expires_at = ? WHERE device_id = ? AND expires_at IS NULL", ends.Unix(), id); err != nil {
			return err
		}
	}
	return insertKey(ctx, tx, id, key, ofCertificate, now)
}

// endOldKeys leaves a device its newest key alone. The error is ErrSameKey where it has no other.
func endOldKeys(ctx context.Context, tx *sql.Tx, id string) error {
	result, err := tx.ExecContext(ctx, "DELETE FROM public_keys WHERE device_id = ? AND expires_at IS NOT NULL", id)
	if err != nil {
		return err
	}
	if ended, err := result.RowsAffected(); err != nil || ended > 0 {
		return err
	}
	return ErrSameKey
}

func checkCredential(r *Registration) error {
	if r.Key == nil {
		return checkSecret(r.ID, r.Secret)
	}
	if len(r.Secret) > 0 {
		return fmt.Errorf("device %q: it has a secret and a public key; give one of them", r.ID)
	}
	return nil
}
