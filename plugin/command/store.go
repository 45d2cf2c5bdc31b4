package command

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// FileName is the database's name in the state directory.
const FileName = "commands.db"

// Options bound a Store. A zero field stands for its default.
type Options struct {
	MaxUnfinished int           // default 65536
	MaxPerDevice  int           // unfinished commands of one device; default 256
	MaxBytes      int64         // of the bodies of the unfinished; default 64 MiB
	MaxFinished   int           // kept; default 100000
	Keep          time.Duration // how long a finished command is kept; default a week
	Log           *slog.Logger  // default: nowhere
	// Changed, if not nil, is notified of each state that a command comes into after its creation, in their order, and of Sent
	// each time: by the Store's goroutine with a lock held, so it must return immediately. It is notified before that is stored; of
	// an answer that came too late, after, and without what is not needed to name the command.
	Changed func(Command)
}

const (
	// maxInbox is how many events of the broker's thread may wait for the goroutine.
	maxInbox = 8192
	// maxInboxBytes bounds the answers that are not in the database yet. They count against maxInbox too: what a device was
	// told is kept must not be more than there is room for while the disk takes nothing, or at the next start.
	maxInboxBytes = 16 << 20
	// pruneAtOnce is how many finished commands one transaction drops, at most: more than it adds at the usual size.
	pruneAtOnce = 1000
	// retryAfter is the time between two attempts to write what could not be written.
	retryAfter = time.Second
)

// A Store holds the commands. Only one process may use a database at a time. Its methods are safe for concurrent use;
// Sent and Answered wait for nothing and are fit for the broker's thread.
type Store struct {
	path    string
	options Options
	log     *slog.Logger
	read    *sql.DB
	db      *sql.DB
	conn    *sql.Conn // the goroutine's
	wake    chan struct{}
	stop    chan struct{}
	done    chan struct{}
	closing sync.Once
	waiting atomic.Int64 // reserved, to be read without the lock

	mu        sync.Mutex // guards what follows; never held during I/O
	closed    bool
	entries   map[string]*entry   // the unfinished, and the finished that are not written yet
	byDevice  map[string][]*entry // the unfinished, oldest first
	expiry    expiryHeap
	creations []*creation
	dirty     []*entry
	reserved  int // creations and unfinished
	perDevice map[string]int
	bytes     int64
	counts    Counts
	late      []lateAnswer
	probes    []chan error // of Writable

	file fs.FileInfo // what was opened

	taken []taken // the goroutine's: of the answers that the next transaction stores

	inboxMu     sync.Mutex // guards what follows; held for a few assignments, also by the broker's thread
	inbox       []event
	answers     int // in the inbox and taken
	answerBytes int // of their payloads
}

// taken is an answer on its way into the database.
type taken struct {
	bytes  int
	stored func()
}

// An entry is an unfinished command in memory.
type entry struct {
	Command
	dirty    bool
	finished chan struct{} // closed with the state Final
	at       int           // in the heap; -1: not
}

// A creation is a command on its way into the database.
type creation struct {
	*entry
	existing *Command // what the idempotency key led to
	done     chan error
}

// An event is what the broker's thread has seen.
type event struct {
	id      string // sent; else
	device  string // answered
	payload []byte
	at      time.Time
	stored  func()
}

// A lateAnswer is one to a command that is no longer in memory.
type lateAnswer struct {
	answer
	device string
	at     time.Time
}

// Open opens the database at path, makes it where there is none with mode 0600, and starts the goroutine that writes to
// it. Close ends it.
func Open(path string, o Options) (*Store, error) {
	o.MaxUnfinished = orDefault(o.MaxUnfinished, 65536)
	o.MaxPerDevice = orDefault(o.MaxPerDevice, 256)
	o.MaxBytes = orDefault(o.MaxBytes, 64<<20)
	o.MaxFinished = orDefault(o.MaxFinished, 100_000)
	o.Keep = orDefault(o.Keep, 7*24*time.Hour)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		path: path, options: o, log: o.Log,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		entries: make(map[string]*entry), byDevice: make(map[string][]*entry), perDevice: make(map[string]int),
	}
	s.counts.ByState = make(map[State]int64)
	if err := s.open(); err != nil {
		return nil, errors.Join(s.failed(err), s.disconnect())
	}
	go s.run()
	return s, nil
}

func orDefault[T int | int64 | time.Duration](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

// Create stores a command for a device, and returns it when it will survive a crash. Where the device has had a command
// with the same key, it returns that, and created is false. The errors that a caller tells apart are ErrKeyReused,
// ErrDeviceFull, ErrFull and ErrClosed.
func (s *Store) Create(ctx context.Context, r Request) (c Command, created bool, err error) {
	if len(r.Key) > MaxKey || r.TTL < MinTTL || r.TTL > MaxTTL {
		return Command{}, false, fmt.Errorf("command: a key of %d bytes and a time to live of %v are out of range", len(r.Key), r.TTL)
	}
	now := time.Now()
	expires := now.Add(r.TTL)
	if whole := expires.Truncate(time.Second); !whole.Equal(expires) {
		expires = whole.Add(time.Second)
	}
	n := &creation{done: make(chan error, 1), entry: &entry{at: -1, finished: make(chan struct{}), Command: Command{
		ID: NewID(now), Device: r.Device, Key: r.Key, Body: slices.Clone(r.Body), State: Queued,
		Created: now, Expires: time.Unix(expires.Unix(), 0),
	}}}
	if err := s.admit(n); err != nil {
		if existing, found := s.byKey(ctx, r.Device, r.Key); found && !errors.Is(err, ErrClosed) {
			return s.repeated(existing, r.Body)
		}
		return Command{}, false, err
	}
	s.poke()
	if err := <-n.done; err != nil {
		return Command{}, false, err
	}
	if n.existing != nil {
		return s.repeated(*n.existing, r.Body)
	}
	return n.Command, true, nil
}

// admit puts a creation into the queue, unless a bound is reached.
func (s *Store) admit(n *creation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case s.perDevice[n.Device] >= s.options.MaxPerDevice:
		return ErrDeviceFull
	case s.reserved >= s.options.MaxUnfinished, s.bytes+int64(len(n.Body)) > s.options.MaxBytes:
		return ErrFull
	}
	s.reserve(n.Device, len(n.Body))
	s.creations = append(s.creations, n)
	return nil
}

func (s *Store) byKey(ctx context.Context, device, key string) (Command, bool) {
	if key == "" {
		return Command{}, false
	}
	c, err := scan(s.read.QueryRowContext(ctx, "SELECT "+columns+" FROM commands WHERE device = ? AND key = ?", device, key))
	return c, err == nil
}

// repeated answers a Create with a command that is there already.
func (s *Store) repeated(c Command, body []byte) (Command, bool, error) {
	if string(c.Body) != string(body) {
		return Command{}, false, ErrKeyReused
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Repeated++
	if e := s.entries[c.ID]; e != nil {
		c = e.Command
	}
	return c, false, nil
}

// Get returns a command. The error is ErrNotFound, or the database's.
func (s *Store) Get(ctx context.Context, id string) (Command, error) {
	s.mu.Lock()
	e := s.entries[id]
	if e != nil {
		c := e.Command
		s.mu.Unlock()
		return c, nil
	}
	s.mu.Unlock()
	c, err := scan(s.read.QueryRowContext(ctx, "SELECT "+columns+" FROM commands WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return Command{}, ErrNotFound
	}
	if err != nil {
		return Command{}, s.failed(err)
	}
	return c, nil
}

// Wait returns a command as soon as it is finished, or as it is when ctx ends or the store is closed.
func (s *Store) Wait(ctx context.Context, id string) (Command, error) {
	s.mu.Lock()
	e := s.entries[id]
	s.mu.Unlock()
	if e != nil {
		select {
		case <-e.finished:
		case <-s.stop:
		case <-ctx.Done():
		}
	}
	return s.Get(context.WithoutCancel(ctx), id)
}

// Unfinished returns the commands of a device that wait for its answer, oldest first, or those of all devices, in no
// order, if device is "". Those that may not be delivered any more are left out.
func (s *Store) Unfinished(device string, now time.Time) (waiting []Command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if device != "" {
		for _, e := range s.byDevice[device] {
			if now.Before(e.Expires) {
				waiting = append(waiting, e.Command)
			}
		}
		return waiting
	}
	for _, e := range s.entries {
		if !e.State.Final() && now.Before(e.Expires) {
			waiting = append(waiting, e.Command)
		}
	}
	return waiting
}

// Sent notes that a command was given to the broker. It waits for nothing. Where too much waits already it is not noted:
// the command then counts as queued until it is answered or sent again.
func (s *Store) Sent(id string, at time.Time) {
	s.inboxMu.Lock()
	if len(s.inbox) < maxInbox {
		s.inbox = append(s.inbox, event{id: id, at: at})
	}
	s.inboxMu.Unlock()
	s.poke()
}

// HasRoom reports whether Answered will take an answer of so many bytes, for a caller who is the only one to call Answered
// and Sent.
func (s *Store) HasRoom(bytes int) bool {
	s.inboxMu.Lock()
	defer s.inboxMu.Unlock()
	return s.hasRoom(bytes)
}

func (s *Store) hasRoom(bytes int) bool {
	return len(s.inbox) < maxInbox && s.answers < maxInbox && s.answerBytes+bytes <= maxInboxBytes
}

// Answered takes the payload of a device's answer, which then belongs to the Store. It waits for nothing. stored is called
// by the Store's goroutine when the answer is in the database, or was found not to belong there; until then it is lost with
// the process. The error is ErrFull.
func (s *Store) Answered(device string, payload []byte, at time.Time, stored func()) error {
	s.inboxMu.Lock()
	full := !s.hasRoom(len(payload))
	if !full {
		s.inbox = append(s.inbox, event{device: device, payload: payload, at: at, stored: stored})
		s.answers++
		s.answerBytes += len(payload)
	}
	s.inboxMu.Unlock()
	s.poke()
	if full {
		return ErrFull
	}
	return nil
}

// Len returns how many commands are unfinished. It takes no lock.
func (s *Store) Len() int { return int(s.waiting.Load()) }

// Counts returns the present figures.
func (s *Store) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	c.ByState = make(map[State]int64, len(s.counts.ByState))
	for _, state := range States() {
		c.ByState[state] = s.counts.ByState[state]
	}
	c.Unfinished, c.Bytes = s.reserved, s.bytes
	return c
}

// Close writes what is left and releases the database. It may be called more than once.
func (s *Store) Close() (err error) {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		close(s.stop)
		<-s.done
		err = s.disconnect()
	})
	<-s.done
	return err
}

func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
