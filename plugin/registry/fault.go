package registry

import (
	"errors"
	"io/fs"

	"mosquitto-bouncer/plugin/sqlite"
)

// A fault is why the database cannot be followed just now; "" for none.
type fault string

const (
	missing  fault = "missing"
	locked   fault = "locked"
	unusable fault = "unusable"
)

// report logs the outcome of a poll where it differs from the last one. A short lock is no fault: every writer holds
// one.
func (r *Registry) report(err error) {
	now := faultOf(err)
	if now == locked {
		if r.waits++; r.waits < lockedPolls {
			return
		}
	} else {
		r.waits = 0
	}
	if now == r.fault {
		return
	}
	r.fault = now
	if now == "" {
		r.log.Info("device database can be read again", "database", r.source.path, "devices", r.Len())
		return
	}
	r.log.Warn("device database cannot be read; its last good state stays in force",
		"database", r.source.path, "fault", string(now), "devices", r.Len(), "error", err)
}

func faultOf(err error) fault {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return missing
	case sqlite.IsBusy(err), errors.Is(err, errOverwritten):
		return locked
	default:
		return unusable
	}
}

// reportKeyless logs when secrets begin and cease to lack their key.
func (r *Registry) reportKeyless(d *delta) {
	switch {
	case d.keyless != nil && !r.keyless:
		r.keyless = true
		r.log.Error("secrets cannot be decrypted; what was known of their devices stays in force, new devices are left out",
			"database", r.source.path, "error", d.keyless)
	case d.keyless == nil && d.full && r.keyless:
		r.keyless = false
		r.log.Info("every secret can be decrypted again", "database", r.source.path)
	}
}

var errKeyless = errors.New("secrets are encrypted under another key than the one in [registry] key_file, or none is set")
