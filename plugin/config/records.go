package config

import "encoding/hex"

// Registry is [registry]: how the device database is kept.
type Registry struct {
	// Key encrypts the devices' secrets in the database: 64 hexadecimal digits,
	// from key_file. Secrets in plain text are read all the same. Default none:
	// secrets are stored as they are.
	Key Secret
}

// Audit is [audit]: the record of what was refused and what was changed.
type Audit struct {
	// File is where it is written, JSON lines. "", the default: nowhere.
	File string
	// MaxBytes is the size at which the file is put aside as FILE.1 and a new
	// one begun: 64KiB to 1TiB, or 0, which leaves that to another program and
	// SIGHUP. Default "64MiB".
	MaxBytes int64
	// Keep is how many files that were put aside are kept, 1 to 1000. Default 8.
	Keep int
}

func (d *document) registry() Registry {
	key := d.secret("registry.key_file")
	if _, err := hex.DecodeString(string(key)); key != nil && (err != nil || len(key) != 64) {
		d.problem("registry.key_file", "does not hold a key, which is 64 hexadecimal digits; make one with bouncerctl registry key FILE")
	}
	return Registry{Key: key}
}

func (d *document) audit() Audit {
	a := Audit{
		MaxBytes: d.size("audit.max_bytes", 64<<20, 0, 1<<40),
		Keep:     int(d.integer("audit.keep", 8, 1, 1000)),
	}
	if file, ok := d.text("audit.file", "/var/log/mosquitto-bouncer/audit.jsonl"); ok && file != "" {
		a.File = d.absolute(file)
	}
	if a.MaxBytes > 0 && a.MaxBytes < 64<<10 {
		d.problem("audit.max_bytes", "%d bytes is out of range; use 65536 or more, or 0 for any size", a.MaxBytes)
	}
	for _, key := range []string{"audit.max_bytes", "audit.keep"} {
		if a.File == "" && d.isSet(key) {
			d.problem(key, "does nothing without a file; set audit.file or remove the line")
		}
	}
	return a
}
