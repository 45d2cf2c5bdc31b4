package registry

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/deviceid"

	"golang.org/x/text/encoding/unicode"
)

// odd is what is said of a row whose id or secret is not text: their types and the id as an SQL literal; NULL of others.
const odd = `CASE WHEN typeof(d.device_id) = 'text' AND typeof(d.shared_secret) = 'text' THEN NULL
	ELSE typeof(d.device_id) || ' ' || typeof(d.shared_secret) || ' ' || quote(substr(d.device_id, 1, 64)) END`

// What few devices have, as one text each, NULL where there is none: "since:expires:A:SECRET" of each old secret, the one
// that was replaced last first, and the fingerprints of pinned certificates. A and SECRET are the letter A and the secret
// in hexadecimal, in the encoding of the database: UTF-8 or UTF-16.
const (
	oldSecrets = `(SELECT group_concat(o.since || ':' || o.expires_at || ':' || hex('A') || ':' || hex(o.shared_secret), ' ' ORDER BY o.rowid DESC)
		FROM old_secrets AS o WHERE o.device_id = d.device_id)`
	pins = `(SELECT group_concat(p.fingerprint, ' ') FROM pinned_certificates AS p WHERE p.device_id = d.device_id)`
	// keys is "expires:KEY" of each public key, that without an end first, then the one that was replaced last.
	keys = `(SELECT group_concat(coalesce(k.expires_at, '') || ':' || k.public_key, ' ' ORDER BY k.expires_at IS NOT NULL, k.rowid DESC)
		FROM public_keys AS k WHERE k.device_id = d.device_id)`
)

// selectDevices is the query for every device, to which a condition and an order may be added.
func (s *source) selectDevices(ctx context.Context, tables schema) string {
	disabled, join, old, pinned, public := "FALSE", "", "NULL", "NULL", "NULL"
	if tables.disabled {
		disabled, join = "x.device_id IS NOT NULL", " LEFT JOIN disabled_devices AS x ON x.device_id = d.device_id"
	}
	if tables.disabled && tables.rotation && s.any(ctx, "old_secrets", "pinned_certificates") {
		old, pinned = oldSecrets, pins
	}
	if tables.keys && s.any(ctx, "public_keys") {
		public = keys
	}
	return `SELECT CASE typeof(d.device_id) WHEN 'text' THEN d.device_id END, CASE typeof(d.shared_secret) WHEN 'text' THEN d.shared_secret END,
		TRUE, ` + disabled + ", " + old + ", " + pinned + ", " + public + ", " + odd + " FROM devices AS d" + join
}

// A row is one device as it is stored. Its slices are valid during a call only.
type row struct {
	id, secret       sql.RawBytes // nil where they are not text
	exists, disabled bool         // there is such a row in devices; in disabled_devices
	old, pins, keys  sql.RawBytes // see the queries of these names
	odd              sql.RawBytes // see odd

	taken bool // it is a device
}

// notText says why a row whose id or secret is not text is no device.
func (r *row) notText() (id, why string) {
	parts := strings.SplitN(string(r.odd), " ", 3)
	if len(parts) != 3 {
		return "", "not a device id"
	}
	if parts[0] == "text" {
		return "", "the secret is of type " + parts[1] + ", not text"
	}
	why = "the id is of type " + parts[0] + ", not text"
	if parts[0] == "blob" {
		why += "; run: UPDATE devices SET device_id = CAST(device_id AS TEXT) WHERE typeof(device_id) = 'blob'"
	}
	return parts[2], why
}

// any tells whether there is a row in any of the tables, which have what few devices have: to look for it of each of a
// million devices takes a second.
func (s *source) any(ctx context.Context, tables ...string) (any bool) {
	query := "SELECT FALSE"
	for _, table := range tables {
		query += " OR EXISTS (SELECT 1 FROM " + table + ")"
	}
	err := s.conn.QueryRowContext(ctx, query).Scan(&any)
	return any || err != nil
}

// rows calls do for each row of a query.
func (s *source) rows(ctx context.Context, do func(*row), query string, args ...any) error {
	rows, err := s.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var r row
	for rows.Next() {
		if err := rows.Scan(&r.id, &r.secret, &r.exists, &r.disabled, &r.old, &r.pins, &r.keys, &r.odd); err != nil {
			return err
		}
		r.taken = false
		do(&r)
	}
	return rows.Err()
}

// take takes up one row of the devices table, and says in the row whether it is a device. known is what the snapshot has
// by that id, or nil.
func (s *source) take(d *delta, known *Device, r *row) {
	switch {
	case r.keys != nil && r.id != nil:
		s.takeKeyed(d, known, r)
		return
	case r.odd != nil:
		id, why := r.notText()
		d.skip(r.id, id, why)
		return
	case !deviceid.Valid(r.id):
		d.skip(r.id, "", "not a device id")
		return
	case len(r.secret) == 0:
		d.skip(r.id, "", "no secret")
		return
	}
	secret, err := s.key.open(r.id, r.secret)
	switch {
	case isKeyMissing(err):
		d.keyless = err
		if known == nil || len(known.Secrets) == 0 {
			return // it may well be a device
		}
		secret = known.Secrets[0] // as long as it is not known what replaced it; a revocation counts all the same
	case err != nil:
		d.skip(r.id, "", err.Error())
		return
	}
	if why := noSecret(secret); why != "" {
		d.skip(r.id, "", why)
		return
	}
	r.taken = true
	if r.old == nil && r.pins == nil && known != nil && known.rare == nil &&
		known.Disabled == r.disabled && bytes.Equal(known.Secrets[0], secret) {
		return // nearly all of them, when everything is read
	}
	device := newDevice(r.id, secret, r.disabled)
	if r.old != nil || r.pins != nil {
		if err := s.takeRare(device, r); err != nil {
			d.skip(r.id, "", err.Error())
			r.taken = false
			return
		}
	}
	d.putChanged(known, device)
}

// putChanged puts a device that is new or differs from what is known of it.
func (d *delta) putChanged(known, device *Device) {
	if known == nil || !known.same(device) {
		d.put = append(d.put, device)
	}
}

// takeRare adds old secrets that have not ended, and pinned certificates. An old secret that cannot be opened is left
// out; a fingerprint that is none would leave the device without its pin, so it is an error.
func (s *source) takeRare(device *Device, r *row) error {
	now := time.Now().Unix()
	var extra rare
	for field := range strings.FieldsSeq(string(r.old)) {
		parts := strings.SplitN(field, ":", 4)
		if len(parts) != 4 {
			continue
		}
		stored, err := textOfHex(parts[2], parts[3])
		if err != nil {
			continue
		}
		end, err := strconv.ParseInt(parts[1], 10, 64)
		if err != nil || end <= now {
			continue
		}
		if secret, err := s.key.open(r.id, stored); err == nil && noSecret(secret) == "" {
			device.Secrets = append(device.Secrets, secret)
			extra.ends = append(extra.ends, end)
		}
	}
	if err := extra.takePins(r); err != nil {
		return err
	}
	if len(extra.ends) > 0 || len(extra.pins) > 0 {
		device.rare = &extra
	}
	return nil
}

func (extra *rare) takePins(r *row) error {
	for text := range strings.FieldsSeq(string(r.pins)) {
		f, err := ParseFingerprint(text)
		if err != nil {
			return fmt.Errorf("the pinned certificate is %w", err)
		}
		extra.pins = append(extra.pins, f)
	}
	slices.SortFunc(extra.pins, func(a, b Fingerprint) int { return bytes.Compare(a[:], b[:]) })
	return nil
}

// textOfHex decodes a text of the database from hexadecimal. letterA is "A" in the same encoding.
func textOfHex(letterA, text string) ([]byte, error) {
	stored, err := hex.DecodeString(text)
	if err != nil {
		return nil, err
	}
	switch letterA {
	case "4100":
		return unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM).NewDecoder().Bytes(stored)
	case "0041":
		return unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM).NewDecoder().Bytes(stored)
	}
	return stored, nil
}

// newDevice makes a device in three allocations, of which a million are to fit in memory.
func newDevice(id, secret []byte, disabled bool) *Device {
	d := new(struct {
		Device
		secrets [1]Secret
	})
	d.secrets[0] = bytes.Clone(secret)
	d.Device = Device{ID: string(id), Secrets: d.secrets[:], Disabled: disabled}
	return &d.Device
}
