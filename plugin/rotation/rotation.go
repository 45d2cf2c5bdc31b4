// Package rotation remembers which of its secrets a device has begun to use, so that what is sent to the device is signed
// with a secret that it has: while a secret is being replaced, the old one until a message that was signed with the new
// one has been accepted.
//
// What is remembered outlives the process, in an SQLite database of its own in the state directory: the registry may be
// one that this program can only read. Of a secret it holds
//
//	HMAC-SHA256(secret, "mosquitto-bouncer secret in use 1" || NUL || device id), its first 16 bytes
//
// which tells no more of the secret than a message that the device has signed.
package rotation

import (
	"crypto/hmac"
	"crypto/sha256"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/loop"
)

// FileName is the database's name in the state directory.
const FileName = "rotation.db"

const (
	// maxNoted is how many devices may wait for the goroutine; of one that does not fit the next message is noted.
	maxNoted = 65536
	// retryAfter is the time between two attempts to write what could not be written.
	retryAfter = time.Second
	// pruneEvery is how often devices are forgotten whose secret is not being replaced any more.
	pruneEvery = 10 * time.Minute

	label = "mosquitto-bouncer secret in use 1\x00"
)

// An id stands for a secret of a device.
type id [16]byte

func idOf(device string, secret []byte) id {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(label))
	mac.Write([]byte(device))
	return id(mac.Sum(nil)[:16])
}

// Options of a Memory.
type Options struct {
	// Adopted, if not nil, is called by the Memory's goroutine when a device has begun to use a newer secret.
	Adopted func(device string)
	// Rotating says whether a device has more than one secret; what is remembered of others is forgotten.
	Rotating func(device string) bool
	Log      *slog.Logger // default: nowhere
}

// A Memory is safe for concurrent use.
type Memory struct {
	path    string
	options Options
	log     *slog.Logger
	db      *database
	loop    *loop.Loop
	err     atomic.Pointer[string] // why it cannot be stored just now; nil: it can

	mu    sync.Mutex // guards what follows; held for a few assignments, also by the broker's thread
	noted map[string]note
	used  map[string]id // by device

	// The goroutine's.
	dirty  map[string]*id // not stored yet; nil: to be deleted
	pruned time.Time      // when devices were forgotten last
}

// A note is that a device has used one of its secrets.
type note struct {
	secrets [][]byte // newest first
	used    int
}

// Note notes that a message signed with secrets[used] was accepted of a device; secrets are those that are valid, newest
// first, and belong to the Memory from now on. It waits for nothing and is fit for the broker's thread. It returns false
// where there is no room: then the next message is to be noted.
func (m *Memory) Note(device string, secrets [][]byte, used int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.noted[device]; !known && len(m.noted) >= maxNoted {
		return false
	}
	m.noted[device] = note{secrets, used}
	m.loop.Wake()
	return true
}

// Choose returns which of a device's secrets, newest first and at least one, to sign with: the newest that it has used,
// or else the oldest. nil remembers nothing. Any goroutine; it waits for nothing.
func Choose[S ~[]byte](m *Memory, device string, secrets []S) int {
	last := len(secrets) - 1
	if m == nil || last == 0 {
		return last
	}
	m.mu.Lock()
	used, any := m.used[device]
	m.mu.Unlock()
	if !any {
		return last
	}
	for i, secret := range secrets {
		if idOf(device, secret) == used {
			return i
		}
	}
	return last
}

// Err returns why what is remembered cannot be stored just now; "" where it can. Any goroutine.
func (m *Memory) Err() string {
	if why := m.err.Load(); why != nil {
		return *why
	}
	return ""
}

// Close stores what was noted, if it can be, and ends the goroutine. It may be called more than once.
func (m *Memory) Close() error {
	m.loop.Close(0)
	return m.db.close()
}

// round takes up what was noted, and stores it. It is the loop's.
func (m *Memory) round(bool) time.Duration {
	m.mu.Lock()
	noted := m.noted
	m.noted = make(map[string]note)
	m.mu.Unlock()
	for device, n := range noted {
		m.take(device, n)
	}
	if now := time.Now(); now.Sub(m.pruned) >= pruneEvery {
		m.pruned = now
		m.prune()
	}
	m.store()
	if len(m.dirty) > 0 {
		return retryAfter
	}
	return pruneEvery - time.Since(m.pruned)
}

// take makes a secret the one in use, unless a newer one is.
func (m *Memory) take(device string, n note) {
	if n.used >= Choose(m, device, n.secrets) {
		return
	}
	used := idOf(device, n.secrets[n.used])
	m.mu.Lock()
	m.used[device] = used
	m.mu.Unlock()
	m.dirty[device] = &used
	m.log.Info("the device uses its new secret; commands are signed with it from now on", "device", device)
	if m.options.Adopted != nil {
		m.options.Adopted(device)
	}
}

// prune forgets devices that have only one secret.
func (m *Memory) prune() {
	if m.options.Rotating == nil {
		return
	}
	var settled []string
	for device := range m.used { // without the lock, which the broker's thread may want: only this goroutine changes it
		if !m.options.Rotating(device) {
			settled = append(settled, device)
		}
	}
	for _, device := range settled {
		m.mu.Lock()
		delete(m.used, device)
		m.mu.Unlock()
		m.dirty[device] = nil
	}
}

// store writes what has changed, all or nothing, and reports when that begins and ceases to fail.
func (m *Memory) store() {
	if len(m.dirty) == 0 {
		return
	}
	err := m.db.write(m.dirty)
	before := m.Err()
	switch {
	case err == nil:
		clear(m.dirty)
		m.err.Store(nil)
		if before != "" {
			m.log.Info("which secrets devices use can be stored again", "database", m.path)
		}
	default:
		err = file(m.path).Failed(err)
		why := "which secrets devices use cannot be stored: " + err.Error()
		m.err.Store(&why)
		if before == "" {
			m.log.Warn("which secrets devices use cannot be stored; after a restart commands are signed with old secrets until the devices publish",
				"database", m.path, "error", err)
		}
	}
}
