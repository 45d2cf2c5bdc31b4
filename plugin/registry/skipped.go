package registry

import (
	"bytes"
	"fmt"
	"time"

	"mosquitto-bouncer/plugin/deviceid"

	"golang.org/x/time/rate"
)

// Bounds of what is said about rows that are no devices: so many are named of one reading, and so many lines are written,
// one a second after a burst.
const (
	maxNamed    = 20
	namedBurst  = 100
	namedPerSec = 1
)

// A skippedRow is a row of the devices table that is no device.
type skippedRow struct{ id, why string }

// A skipLog names the rows that are no devices. The zero value is not usable. For one goroutine.
type skipLog struct {
	limiter *rate.Limiter
	last    string // what was said of the last reading of all
}

func newSkipLog() *skipLog { return &skipLog{limiter: rate.NewLimiter(namedPerSec, namedBurst)} }

// skip notes a row that is no device. id is as it was read; what is not text has its SQL literal in odd instead.
func (d *delta) skip(id []byte, odd, why string) {
	d.skipped++
	if len(d.sample) == maxNamed {
		return
	}
	name := odd
	if name == "" {
		name = fmt.Sprintf("%q", id[:min(len(id), deviceid.MaxLen)])
	}
	d.sample = append(d.sample, skippedRow{name, why})
}

// report names the rows of a delta that are no devices; those of a full reading only where they differ from the last.
func (l *skipLog) report(r *Registry, d *delta) {
	found := fmt.Sprint(d.skipped, d.sample)
	if d.full {
		if found == l.last {
			return
		}
		l.last = found
	}
	if d.skipped == 0 {
		return
	}
	named := 0
	for _, row := range d.sample {
		if !l.limiter.AllowN(time.Now(), 1) {
			break
		}
		named++
		r.log.Warn("skipped a row that is not a device", "id", row.id, "reason", row.why)
	}
	r.log.Warn("skipped rows that are not devices; correct or remove them",
		"database", r.source.path, "rows", d.skipped, "named", named)
}

// noSecret says why a text is no secret; "" where it is one. HMAC fills a key up with NUL bytes (RFC 2104, section 2), so
// one of only NUL bytes is the empty key, which anyone has; one of blanks is no better.
func noSecret(secret []byte) string {
	switch {
	case len(secret) == 0:
		return "no secret"
	case len(bytes.Trim(secret, "\x00")) == 0:
		return "the secret consists of NUL bytes only"
	case len(bytes.Trim(secret, "\x00 \t\r\n\v\f")) == 0 || len(bytes.TrimSpace(secret)) == 0:
		return "the secret consists of white space only"
	}
	return ""
}
