// Package registry knows the devices and their shared secrets: a [Registry] answers from memory and follows the SQLite
// database they are kept in, a [Store] changes that database.
//
// The database is the one table of the Python gateway, used as it is, and what [Open] and [OpenStore] add to it by
// versioned migrations: a table of disabled devices, and a bounded log of changes fed by triggers, for every program that writes.
// Both are separate from the devices table, so that an INSERT of another program fits however it is written,
// and an INSERT OR REPLACE renews a disabled device's secret without enabling it.
//
// A database made here keeps SQLite's rollback journal; the journal mode of an existing one is not changed. With WAL,
// even a reader must write the -shm file, and the process that opens the database first makes it and the -wal: the broker's user
// and root would depend on each other's files, and read permission would not be enough. A rollback journal exists
// during a transaction only. What WAL would buy, writing while others read, is not needed: a reader holds its lock for
// the microseconds of a poll, the milliseconds of a change, or at the longest the seconds it takes to load a million
// devices.
package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

const (
	pollInterval = 250 * time.Millisecond
	openBusy     = 5 * time.Second        // how long Open waits for a writer
	pollBusy     = 250 * time.Millisecond // how long a poll waits for a writer
	closeLimit   = 5 * time.Second
	lockedPolls  = 3 // polls in a row that find the database locked before it is called a fault
)

// A Registry holds every registered device in memory and follows the database: what changes there is in force within a
// second, or once it is loaded where everything has to be read again (after more than ten thousand changes at once, for
// a replaced file, and for every change of a database that may not be migrated). While the database is missing, locked or unusable, the last good state stays in force. Its methods
// are safe for concurrent use.
type Registry struct {
	current atomic.Pointer[snapshot]
	gone    atomic.Pointer[map[string]uint32] // a copy of removed that does not change; nil: none
	changed atomic.Pointer[func()]            // see OnChange; nil: none
	health  atomic.Pointer[health]            // of the last poll; see Health
	told    atomic.Pointer[func([]Change)]    // see OnChanges; nil: none
	newKey  atomic.Pointer[Key]               // see SetKey; nil: none
	reread  atomic.Bool                       // see Reread
	log     *slog.Logger
	stop    context.CancelFunc
	done    chan struct{} // closed when the goroutine has ended

	numbering sync.Mutex        // guards the three below
	serials   uint32            // serials given so far
	removed   map[string]uint32 // serials of devices that were removed
	reserved  map[string]uint32 // serials of devices that Reserve named; nil: none

	// The fields below belong to Open, and then to the goroutine.
	source  *source
	skipped *skipLog
	compare comparison
	fault   fault           // as last reported
	waits   int             // polls in a row that found the database locked
	ending  map[string]bool // devices with a secret or key that ends
	nextEnd int64           // when the first of them does, in seconds since 1970; 0: none
	keyless bool            // reported that secrets cannot be opened
}

// Open loads the devices of the database at path, which must exist, and follows it from then on in a goroutine that
// Close ends. It waits up to five seconds for another program's transaction. A database that may not be written is used
// as it is.
//
// Where a secret is encrypted and its key is not the one of WithKey, that is an error; when it becomes so later, what is
// known of the device stays in force, but for its being disabled or removed, and new ones are left out.
func Open(path string, log *slog.Logger, options ...Option) (*Registry, error) {
	o := apply(options)
	return open(&source{path: path, busy: openBusy, log: log, key: o.key}, log, o)
}

// Check finds out whether Open would succeed, and changes nothing.
func Check(ctx context.Context, path string, options ...Option) error {
	log := slog.New(slog.DiscardHandler)
	from := &source{path: path, readOnly: true, busy: openBusy, log: log, key: apply(options).key}
	r := &Registry{log: log, source: from, skipped: newSkipLog(), removed: make(map[string]uint32), ending: make(map[string]bool)}
	r.current.Store(newSnapshot())
	return errors.Join(opened(r.load(ctx)), from.close())
}

func opened(err error) error {
	if err != nil {
		err = fmt.Errorf("device database: %w", err)
	}
	return err
}

func open(from *source, log *slog.Logger, o options) (*Registry, error) {
	ctx, stop := context.WithCancel(context.Background())
	r := &Registry{
		log:     log,
		stop:    stop,
		done:    make(chan struct{}),
		source:  from,
		skipped: newSkipLog(),
		compare: comparison{every: cmp.Or(o.compareEvery, compareEvery)},
		removed: make(map[string]uint32),
		ending:  make(map[string]bool),
	}
	r.current.Store(newSnapshot())
	if err := r.load(ctx); err != nil {
		stop()
		_ = from.close()
		return nil, opened(err)
	}
	from.busy = pollBusy
	if _, err := from.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA busy_timeout = %d", pollBusy.Milliseconds())); err != nil {
		stop()
		_ = from.close()
		return nil, fmt.Errorf("device database: %s: %w", from.path, err)
	}
	r.noteHealth(nil)
	r.compare.next = time.Now().Add(r.compare.every)
	go r.follow(ctx)
	return r, nil
}

// load is the first refresh.
func (r *Registry) load(ctx context.Context) error {
	if err := r.refresh(ctx); err != nil {
		return err
	}
	if r.keyless {
		return fmt.Errorf("%s: secrets cannot be decrypted; set [registry] key_file to the file with the key they were encrypted under", r.source.path)
	}
	return nil
}

// Lookup returns the device with this id, or nil where there is none. It takes no lock and allocates nothing; the id is
// not kept.
func (r *Registry) Lookup(id []byte) *Device {
	return r.current.Load().lookup(id)
}

// WasRegistered reports whether a device with this id was registered since Open and no longer is. Like Lookup it takes no
// lock and allocates nothing.
func (r *Registry) WasRegistered(id []byte) bool {
	gone := r.gone.Load()
	if gone == nil {
		return false
	}
	_, was := (*gone)[string(id)]
	return was
}

// SetKey has secrets opened under another key from the next poll on.
func (r *Registry) SetKey(k *Key) { r.newKey.Store(k) }

// Reread has the whole database read, over a new connection, at the next poll: within a quarter of a second, where it can
// be read. It returns at once. Any thread.
func (r *Registry) Reread() { r.reread.Store(true) }

// Len returns the number of registered devices, disabled ones included.
func (r *Registry) Len() int {
	return r.current.Load().len
}

// Close stops following the database. It returns within five seconds, with an error where the file system did not
// answer by then. Lookup continues answering with the last state. Close may be called more than once.
func (r *Registry) Close() error {
	r.stop()
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	select {
	case <-r.done:
		return nil
	case <-limit.C:
		return fmt.Errorf("device database: %s: a read has not ended after %v; not waiting any longer", r.source.path, closeLimit)
	}
}

func (r *Registry) follow(ctx context.Context) {
	defer close(r.done)
	defer func() { _ = r.source.close() }()
	defer func() { r.compare.end() }()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			r.poll(ctx)
		}
	}
}

// poll refreshes once and reports when that begins or ceases to fail. It does not panic.
func (r *Registry) poll(ctx context.Context) {
	defer func() {
		if p := recover(); p != nil {
			r.report(fmt.Errorf("panic: %v", p))
		}
	}()
	if k := r.newKey.Swap(nil); k != nil {
		r.source.key = k
		r.source.forget() // what could not be opened may be now
	}
	if r.reread.Swap(false) {
		_ = r.source.close()
		r.skipped.last = ""
	}
	err := r.refresh(ctx)
	r.endSecrets(time.Now().Unix()) // also while the database cannot be followed
	if err == nil {
		err = r.compareSome(ctx)
	} else {
		r.compare.end()
	}
	if ctx.Err() == nil {
		r.report(err)
		if err == nil && r.keyless {
			err = errKeyless
		}
		r.noteHealth(err)
	}
}

// refresh brings the snapshot up to date with the database. On an error it is left as it is.
func (r *Registry) refresh(ctx context.Context) error {
	before := r.current.Load()
	d, err := r.source.changes(ctx, before)
	if err != nil || d == nil {
		return err
	}
	r.skipped.report(r, d)
	r.reportKeyless(d)
	if r.keyless && !d.full {
		r.source.forget() // only a reading of all tells that it is over
	}
	if d.unexplained {
		r.compare.hasten()
	}
	if d.overwritten && len(d.put)+len(d.drop) > 0 {
		r.log.Info("device database was overwritten in place; reading all of it", "database", r.source.path)
	}
	if len(d.put) == 0 && len(d.drop) == 0 {
		return nil
	}
	after, added, err := r.publish(before, d)
	if err != nil {
		return err
	}
	r.tell(before, d)
	r.log.Info("devices changed", "added", added, "changed", len(d.put)-added, "removed", len(d.drop), "devices", after.len)
	return nil
}

// publish makes the snapshot that the delta leads to the current one; added is how many of its devices are new.
func (r *Registry) publish(before *snapshot, d *delta) (after *snapshot, added int, err error) {
	r.numbering.Lock()
	defer r.numbering.Unlock()
	if added, err = r.number(before, d); err != nil {
		return nil, 0, err
	}
	after = before.with(d.put, d.drop)
	r.noteEnds(d.put)
	if len(d.drop) > 0 || r.gone.Load() != nil {
		// First, so that there is no moment at which a removed device is neither.
		gone := maps.Clone(r.removed)
		r.gone.Store(&gone)
	}
	r.current.Store(after)
	return after, added, nil
}

// noteEnds remembers which devices have a secret or key that ends.
func (r *Registry) noteEnds(devices []*Device) {
	for _, d := range devices {
		if end := d.nextEnd(); end != 0 {
			r.ending[d.ID] = true
			if r.nextEnd == 0 || end < r.nextEnd {
				r.nextEnd = end
			}
		}
	}
}

// endSecrets takes out of force the secrets and keys whose time has come.
func (r *Registry) endSecrets(now int64) {
	if r.nextEnd == 0 || now < r.nextEnd {
		return
	}
	before := r.current.Load()
	d := new(delta)
	r.nextEnd = 0
	for id := range r.ending {
		device := before.lookup([]byte(id))
		if device == nil || device.nextEnd() == 0 {
			delete(r.ending, id)
			continue
		}
		if next := device.at(now); next != device {
			d.put = append(d.put, next)
			device = next
		}
		if end := device.nextEnd(); end == 0 {
			delete(r.ending, id)
		} else if r.nextEnd == 0 || end < r.nextEnd {
			r.nextEnd = end
		}
	}
	if len(d.put) == 0 {
		return
	}
	r.current.Store(before.with(d.put, nil))
	r.tell(before, d)
	r.log.Info("rotated secrets or public keys have expired", "devices", len(d.put))
}
