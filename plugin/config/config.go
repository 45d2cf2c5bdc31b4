// Package config is bouncer.toml: strict to parse, and sound once it is parsed.
//
// Whatever Load does not understand it refuses: an unknown key, a value out of
// range, a file that cannot be read. A misspelt setting that did nothing would
// be a gate left open.
package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/textfile"
)

// MaxFileBytes is the largest bouncer.toml, and the largest file named in it,
// that is read.
const MaxFileBytes = 1 << 20

// DeviceID is the placeholder for the device id in topics and in the backend's
// URL.
const DeviceID = "{device_id}"

// Config is a bouncer.toml that has been checked: every value is within its
// range, every file it names has been read, every path is absolute. It is not
// changed after Load and so safe for concurrent use.
//
// Each field is the setting of the same name in lower case with underscores;
// paths in the file may be relative to the directory of bouncer.toml.
type Config struct {
	// StateDir is the directory of the journal and of the dead letters. Default
	// "/var/lib/mosquitto-bouncer".
	StateDir string
	// Database is the SQLite file of the devices. Default
	// "/var/lib/mosquitto-bouncer/devices.db".
	Database string

	Publish  Publish
	Backend  Backend
	Response Response
	Command  Command
	Rejected Rejected
	ACL      ACL
	Journal  Journal
	HTTP     HTTP
	Registry Registry
	Audit    Audit

	DeadLetters DeadLetters

	file  string
	lines map[string]int // of the keys that are set
	files []File
}

// A File is one that a setting names, and that Load has read.
type File struct {
	Key  string // as in the file, with its section: "http.token_file"
	Path string // absolute
}

// Files returns the files that were read, in no particular order: those of secrets, keys and certificates.
func (c *Config) Files() []File { return c.files }

// Where returns where a setting stands, for an error about its value that only
// its use brings to light: "FILE:LINE: key", or "FILE: key" where the default
// is in force. key is as in the file, with its section: "backend.url".
func (c *Config) Where(key string) string {
	if line, set := c.lines[key]; set {
		return fmt.Sprintf("%s:%d: %s", c.file, line, key)
	}
	return fmt.Sprintf("%s: %s", c.file, key)
}

// Publish is [publish]: what is gated, and what a device may send.
type Publish struct {
	// Topics are the gated topic filters, 1 to 16 of them. In each exactly one
	// level is "+", the device id; none has "#" or begins with "$", and no
	// topic matches two. Default ["device/+/data"].
	Topics []string
	// Tolerance is how far a timestamp may be off the broker's clock, either
	// way: 1s to 24h in whole seconds. Default "5m".
	Tolerance time.Duration
	// MaxBytes is the largest publish in bytes, the envelope included: 256 to
	// 268435455 (MQTT's own limit), as an integer or a size such as "64KiB".
	// Default 65536.
	MaxBytes int
	// Rate is the publishes a second that each device may make, 0 to 1000000,
	// fractions allowed. 0, the default: no limit.
	Rate float64
	// Burst is how many publishes a device may make at once before Rate holds
	// it back, 0 to 1000000. Default 0: as many as one second of Rate allows,
	// at least one; that number is what Load puts here. Without a rate it is 0.
	Burst int
	// Issuers are the certificates (DER) of the CAs that sign devices'
	// certificates, from the PEM files that issuers names, at most 32 in 16
	// files. A client's certificate counts for a device only if one of them has
	// signed it itself. Default none: any CA that a listener trusts may.
	Issuers [][]byte
	// MaxBadSignatures is how many of a device's publishes may fail for a bad
	// signature within a minute before its client is disconnected, 0 to
	// 1000000. 0: any number. Default 60.
	MaxBadSignatures int
}

// Backend is [backend]: where accepted payloads go.
type Backend struct {
	// URL is where a payload is posted: absolute, http or https, without user
	// name, password or fragment. {device_id} in its path stands for the
	// device id. Default "http://localhost:5000/device/{device_id}/data".
	URL string
	// Timeout bounds one request from connect to the last byte of the answer:
	// 100ms to 5m. Default "5s".
	Timeout time.Duration
	// Concurrency is how many requests run at once, 1 to 4096. Default 64.
	Concurrency int
	// MaxAge is how old an undelivered message becomes before it is a dead
	// letter: 1m to 8760h (a year). Default "72h".
	MaxAge time.Duration
	// Batch is how many messages one request carries at most, 1 to 1000. Above
	// 1 they go as a JSON array of CloudEvents, and {device_id} in URL is
	// refused. Default 1.
	Batch int
	// Linger is how long a message waits for others to fill a batch: 1ms to
	// 10s. Default "20ms".
	Linger time.Duration
	// Order is "device", the default (a device's messages go one at a time, in
	// their order), or "none" (one device may use all connections).
	Order string
	// FatalStatuses are statuses, 300 to 599, with which a message is a dead
	// letter at once, whatever they would mean else. Default none.
	FatalStatuses []int
	// BearerToken is sent in Authorization; from bearer_token_file. Default
	// none.
	BearerToken Secret
	// SigningSecret signs requests as Standard Webhooks describes; from
	// signing_secret_file. Default none.
	SigningSecret Secret
	// TLS is nil for an http URL. For https: TLS 1.2 or later, the CAs of
	// ca_file instead of the system's, and the client certificate of cert_file
	// and key_file (PEM; both or neither). Default: the system's CAs and no
	// client certificate.
	TLS *tls.Config
}

// Command is [command]: the backend's commands.
type Command struct {
	// Topic is where a device gets its commands: a topic in which one level is
	// {device_id}, and which is not gated. Default "device/{device_id}/command".
	Topic string
}

// ResultTopic is where a device publishes its answers to commands: Topic with
// "/result" behind it.
func (c Command) ResultTopic() string { return c.Topic + "/result" }

// Rejected is [rejected]: telling devices of refused publishes.
type Rejected struct {
	// Topic is where a device is told why its publish was refused: a topic in
	// which one level is {device_id}, and which is not gated. "", the default:
	// it is not told.
	Topic string
}

// Journal is [journal]: the log of accepted messages in StateDir.
type Journal struct {
	// MaxBytes is the room it may take: 1MiB to 1TiB, as an integer or a size
	// such as "1GiB", and at least publish.max_bytes + 128KiB. Publishes are
	// refused when it is full. Default "1GiB".
	MaxBytes int64
	// Sync is the time between two fsyncs, 1ms to 10s; what a power failure
	// may cost. 0, written "always": fsync before every PUBACK. Default
	// "100ms".
	Sync time.Duration
	// DeviceShare is the part of MaxBytes that one device's messages and ids
	// may take, 0.001 to 1, but never less than one message of the largest
	// size. Default 0.25.
	DeviceShare float64
}

// HTTP is [http]: commands, metrics and health.
type HTTP struct {
	// Listen is the host:port to listen on. Anything but a loopback address
	// needs cert_file and key_file. "", the default: no listener.
	Listen string
	// Token is the bearer token that clients present; from token_file. Needed
	// with Listen.
	Token Secret
	// TLS serves the certificate of cert_file and key_file (PEM; both or
	// neither), TLS 1.2 or later; nil: plain HTTP. Default nil.
	TLS *tls.Config
}

// Load reads and checks the bouncer.toml at path, and the files it names.
//
// An error says what is wrong and what to do, one problem a line, each
// beginning "FILE:LINE: key: " (an *Error), or "FILE: " where the file itself
// could not be read (wrapping the cause). No secret is ever in it.
func Load(path string) (*Config, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; give an absolute path", path, err)
	}
	source, err := readFile(path, 0)
	if err != nil {
		advice := "the broker's user must be able to read it"
		switch {
		case errors.Is(err, fs.ErrPermission):
			advice = "the broker's user must be able to read it, and so must who runs bouncerctl"
		case errors.Is(err, fs.ErrNotExist):
			advice = "name an existing file, or create one with bouncerctl init"
		}
		if textfile.Is(err) {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return nil, fmt.Errorf("%s: cannot be read: %w; %s", path, err, advice)
	}
	return parse(path, filepath.Dir(absolute), source)
}

// journalRoom is what the journal needs beside the largest message.
const journalRoom = 128 << 10

// parse is Load after the reading. Relative paths in source are relative to
// dir.
func parse(file, dir string, source []byte) (*Config, error) {
	d, err := newDocument(file, dir, source)
	if err != nil {
		return nil, err
	}
	c := d.settings()
	d.keepTopicsApart(c)
	if least := int64(c.Publish.MaxBytes) + journalRoom; c.Journal.MaxBytes < least {
		d.problem("journal.max_bytes", "%d bytes is too little for messages of publish.max_bytes (%d); use at least %d", c.Journal.MaxBytes, c.Publish.MaxBytes, least)
	}
	if least := int64(c.Publish.MaxBytes) + journalRoom; c.DeadLetters.MaxBytes < least {
		d.problem("dead_letters.max_bytes", "%d bytes is too little for messages of publish.max_bytes (%d); use at least %d", c.DeadLetters.MaxBytes, c.Publish.MaxBytes, least)
	}
	d.refuseUnknown()
	if err := d.err(); err != nil {
		return nil, err
	}
	c.file, c.lines, c.files = file, make(map[string]int), d.files
	for _, e := range d.entries {
		if _, set := d.lookup(e.key); set {
			c.lines[e.key] = e.line
		}
	}
	return c, nil
}

// settings reads every setting once.
func (d *document) settings() *Config {
	return &Config{
		StateDir: d.path("state_dir", "/var/lib/mosquitto-bouncer"),
		Database: d.path("database", "/var/lib/mosquitto-bouncer/devices.db"),
		Publish:  d.publish(),
		Backend:  d.backend(),
		Response: d.response(),
		Command:  Command{Topic: d.deviceTopic("command.topic", "device/{device_id}/command", false)},
		Rejected: Rejected{Topic: d.deviceTopic("rejected.topic", "", true)},
		ACL:      d.acl(),
		Journal:  d.journal(),
		HTTP:     d.http(),
		Registry: d.registry(),
		Audit:    d.audit(),

		DeadLetters: d.deadLetters(),
	}
}

func (d *document) publish() Publish {
	p := Publish{
		Topics:    d.filters("publish.topics", "device/+/data"),
		Tolerance: d.duration("publish.tolerance", 5*time.Minute, time.Second, 24*time.Hour),
		MaxBytes:  int(d.size("publish.max_bytes", 65536, 256, 268435455)),
		Rate:      d.number("publish.rate", 0, 0, 1e6),
		Burst:     int(d.integer("publish.burst", 0, 0, 1e6)),

		Issuers: d.issuers("publish.issuers"),

		MaxBadSignatures: int(d.integer("publish.max_bad_signatures", 60, 0, 1e6)),
	}
	if p.Tolerance%time.Second != 0 {
		d.problem("publish.tolerance", "%s is not a whole number of seconds; timestamps are in seconds, so use for example %q", p.Tolerance, "5m")
	}
	switch {
	case p.Rate > 0 && p.Burst == 0:
		p.Burst = oneSecond(p.Rate)
	case p.Rate == 0 && p.Burst > 0:
		d.problem("publish.burst", "does nothing without a rate; set publish.rate or remove the line")
	}
	return p
}

func (d *document) backend() Backend {
	url, secure := d.url("backend.url", "http://localhost:5000/device/{device_id}/data")
	b := Backend{
		URL:           url,
		Timeout:       d.duration("backend.timeout", 5*time.Second, 100*time.Millisecond, 5*time.Minute),
		Concurrency:   int(d.integer("backend.concurrency", 64, 1, 4096)),
		MaxAge:        d.duration("backend.max_age", 72*time.Hour, time.Minute, 8760*time.Hour),
		Batch:         int(d.integer("backend.batch", 1, 1, 1000)),
		Order:         d.choice("backend.order", OrderDevice, OrderNone),
		FatalStatuses: d.statuses("backend.fatal_statuses"),
		Linger:        d.duration("backend.linger", 20*time.Millisecond, time.Millisecond, 10*time.Second),
		BearerToken:   d.secret("backend.bearer_token_file"),
		SigningSecret: d.secret("backend.signing_secret_file"),
	}
	switch {
	case b.Batch > 1 && strings.Contains(url, DeviceID):
		d.problem("backend.batch", "messages of many devices go in one request, so the URL cannot name one; remove %s from backend.url, or the line", DeviceID)
	case b.Batch == 1 && d.isSet("backend.linger"):
		d.problem("backend.linger", "does nothing without a batch; set backend.batch or remove the line")
	}
	pool := d.certPool("backend.ca_file")
	certificates := d.keyPair("backend.cert_file", "backend.key_file")
	if secure {
		b.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: certificates}
		return b
	}
	for _, key := range []string{"backend.ca_file", "backend.cert_file", "backend.key_file"} {
		if url != "" && d.isSet(key) {
			d.problem(key, "has no use with an http URL; use https in backend.url, or remove the line")
		}
	}
	return b
}

func (d *document) journal() Journal {
	j := Journal{
		MaxBytes:    d.size("journal.max_bytes", 1<<30, 1<<20, 1<<40),
		DeviceShare: d.number("journal.device_share", 0.25, 0.001, 1),
	}
	if always, _ := d.value("journal.sync"); always != "always" {
		j.Sync = d.duration("journal.sync", 100*time.Millisecond, time.Millisecond, 10*time.Second)
	}
	return j
}

func (d *document) http() HTTP {
	h := HTTP{
		Listen: d.listen("http.listen"),
		Token:  d.secret("http.token_file"),
	}
	if certificates := d.keyPair("http.cert_file", "http.key_file"); certificates != nil {
		h.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: certificates}
	}
	if h.Listen != "" && !d.isSet("http.token_file") {
		d.problem("http.listen", "needs a bearer token; set http.token_file")
	}
	if h.Listen != "" && !d.isSet("http.cert_file") && !isLoopback(h.Listen) {
		d.problem("http.listen", "%q is not a loopback address and would take the token in the clear; set http.cert_file and http.key_file, or listen on 127.0.0.1", h.Listen)
	}
	return h
}

// readFile returns the text of a regular file of at most MaxFileBytes, without a byte order mark.
// forbidden are the permission bits that the file must not have. The path is
// left out of the errors: the caller names it.
func readFile(path string, forbidden fs.FileMode) ([]byte, error) {
	content, err := readRegular(path, forbidden)
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	if err != nil {
		return nil, err
	}
	return textfile.Decode(content)
}
