package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/secret"
)

// A Device is one registered device. It is immutable: a device that changes is a new Device with the same Serial, one
// that does not keeps its address, so what is derived from a Device may be kept for as long as Lookup returns the same
// pointer.
type Device struct {
	ID       string
	Serial   uint32 // counted from 0, its own for the life of the Registry, also across removal and return
	Disabled bool
	Secrets  []Secret // the HMAC keys in force, newest first; no secret is empty. nil: it has Keys, and only then

	rare *rare // what few devices have; nil: nothing of it
}

// rare is kept apart so that a million devices without it do not pay for it.
type rare struct {
	keys []*publickey.Key // in force, newest first
	ends []int64          // when the secrets or keys from the second on end, in seconds since 1970
	pins []Fingerprint
}

// A Fingerprint is the SHA-256 of a certificate's DER encoding.
type Fingerprint [sha256.Size]byte

// String returns the fingerprint as 64 hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// ParseFingerprint reads 64 hexadecimal digits, in either case, with or without colons between the bytes.
func ParseFingerprint(text string) (f Fingerprint, err error) {
	digits := strings.ReplaceAll(text, ":", "")
	if len(digits) != 2*len(f) {
		return f, errFingerprint
	}
	if _, err := hex.Decode(f[:], []byte(digits)); err != nil {
		return f, errFingerprint
	}
	return f, nil
}

var errFingerprint = errors.New("not a SHA-256 fingerprint (64 hexadecimal digits)")

// Pinned tells whether the device may only come with certain certificates.
func (d *Device) Pinned() bool { return d.rare != nil && len(d.rare.pins) > 0 }

// Allows tells whether the device may come with this certificate: any, unless some are pinned.
func (d *Device) Allows(f Fingerprint) bool { return !d.Pinned() || slices.Contains(d.rare.pins, f) }

// nextEnd returns when the first of the secrets or keys ends, in seconds since 1970; 0: none does.
func (d *Device) nextEnd() int64 {
	if d.rare == nil || len(d.rare.ends) == 0 {
		return 0
	}
	return slices.Min(d.rare.ends)
}

// At returns the device with the secrets or keys that are in force at a time; the newest always is.
func (d *Device) At(now time.Time) *Device { return d.at(now.Unix()) }

// at returns the device with the secrets or keys that are in force at a time, itself where all are. It keeps the serial.
func (d *Device) at(now int64) *Device {
	if end := d.nextEnd(); end == 0 || end > now {
		return d
	}
	next := *d
	next.rare = nil
	kept := rare{pins: d.rare.pins}
	last := []int{0} // those that are in force
	for i, end := range d.rare.ends {
		if end > now {
			last = append(last, i+1)
			kept.ends = append(kept.ends, end)
		}
	}
	if d.rare.keys == nil {
		next.Secrets = only(d.Secrets, last)
	} else {
		kept.keys = only(d.rare.keys, last)
	}
	if len(kept.ends) > 0 || len(kept.pins) > 0 || len(kept.keys) > 0 {
		next.rare = &kept
	}
	return &next
}

// only returns the elements of all with these indices.
func only[T any](all []T, indices []int) []T {
	some := make([]T, len(indices))
	for i, at := range indices {
		some[i] = all[at]
	}
	return some
}

// same tells whether two devices differ in nothing but their serials.
func (d *Device) same(o *Device) bool {
	return d.ID == o.ID && d.Disabled == o.Disabled && sameSecrets(d, o) && sameKeys(d, o) && samePins(d, o)
}

func sameSecrets(d, o *Device) bool {
	if !slices.EqualFunc(d.Secrets, o.Secrets, Secret.Equal) {
		return false
	}
	return len(d.Secrets) < 2 || slices.Equal(d.rare.ends, o.rare.ends)
}

func samePins(d, o *Device) bool {
	if !d.Pinned() || !o.Pinned() {
		return d.Pinned() == o.Pinned()
	}
	return slices.Equal(d.rare.pins, o.rare.pins)
}

// A Secret is a device's HMAC key: the bytes of the text in the database, as they are.
type Secret = secret.Secret
