// Package deadletter keeps, in SQLite, the messages that the backend will not have, until an operator requeues or drops
// them. Nothing is removed automatically.
//
// The plugin adds letters and takes back what is requeued, while an operator's program lists and changes them: both use
// a [Store]. The database keeps SQLite's rollback journal: with WAL, root and the broker's user would depend on files
// that the first caller makes. Instead letters that come at once are stored in one transaction, and whatever changes
// or lists many does so in steps between which others have their turn.
//
// # Requeueing without a loss
//
// Requeue only marks letters. The plugin takes marked letters with Requeued, stores each in its journal, and only then
// calls Remove; after a crash in between the letter is taken again, and the message delivered twice with one
// idempotency key. A message that dies again before its letter is removed is a new death of the same letter: the mark
// goes, and Remove leaves it, for what it was given is no longer what there is.
package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mattn/go-sqlite3"

	"mosquitto-bouncer/plugin/sqlite"
)

// FileName is the database's name in the state directory.
const FileName = "dead.db"

// What a Store's methods answer with where a caller may want to distinguish the cases.
var (
	ErrNotFound = errors.New("no such letter")
	ErrClosed   = errors.New("the database of dead letters is closed")
)

// How long a Store waits for another program's transaction.
const (
	pluginBusy   = 2 * time.Second // it may try again, and must be able to stop
	operatorBusy = 10 * time.Second
)

// A Store is the database of dead letters, which other programs may use at the same time. What a method has stored or
// removed when it returns survives a power failure. A database that is moved away or replaced is closed, at the
// next call, for the one that is there then. A Store's methods are safe for concurrent use.
type Store struct {
	path   string
	create bool
	busy   time.Duration

	limits  Limits
	dropped atomic.Uint64 // letters, for others
	memory  bool          // the rollback journal is in memory: the disk has no room for it

	turn chan struct{} // holds one, of who uses what follows
	db   *sql.DB
	conn *sql.Conn   // nil: none
	file fs.FileInfo // what conn was opened on
	shut bool

	mu      sync.Mutex       // guards what follows; never held during I/O
	waiting []*addition      // letters that no goroutine has begun to store
	wants   map[string]int64 // see noteWant
}

// Open opens the database at path for the plugin, with bounds on what Add stores, and makes it where there is none, with
// mode 0640: its group may read payloads. The methods of the Store wait up to two seconds for another program's transaction.
func Open(path string, limits Limits) (*Store, error) {
	return open(&Store{path: path, create: true, busy: pluginBusy, limits: limits})
}

// OpenExisting opens the database at path for an operator, who should not become the owner of a new one: where there is
// none, the error is fs.ErrNotExist. Permission to read is enough to read. The methods of the Store wait up to ten
// seconds for another program's transaction.
func OpenExisting(path string) (*Store, error) {
	return open(&Store{path: path, busy: operatorBusy})
}

func open(s *Store) (*Store, error) {
	s.turn = make(chan struct{}, 1)
	err := s.use(context.Background(), func(*sql.Conn) error { return nil })
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Close waits for what is under way and releases the database. It may be called more than once.
func (s *Store) Close() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.shut = true
	return s.disconnect()
}

// use runs do on the connection, when it is its turn.
func (s *Store) use(ctx context.Context, do func(*sql.Conn) error) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	return s.used(ctx, do)
}

// used is use for who has the turn.
func (s *Store) used(ctx context.Context, do func(*sql.Conn) error) error {
	err := s.connect(ctx)
	if err == nil {
		err = do(s.conn)
	}
	if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrClosed) {
		return err
	}
	if !sqlite.IsBusy(err) && ctx.Err() == nil {
		_ = s.disconnect() // the next one may find what this one did not
	}
	return s.failed(err)
}

// connect makes the connection lead to the file that is at the path.
func (s *Store) connect(ctx context.Context) error {
	if s.shut {
		return ErrClosed
	}
	file, err := os.Stat(s.path)
	if err == nil && s.conn != nil && os.SameFile(file, s.file) {
		return nil
	}
	_ = s.disconnect()
	if errors.Is(err, fs.ErrNotExist) && s.create {
		file, err = sqlite.Create(s.path, 0o640)
	}
	if err != nil {
		return err
	}
	o := sqlite.Options{
		Busy: s.busy,
		// With less, a transaction could be undone by a power failure that follows it closely, while the journal
		// of messages has noted that the letter is stored.
		Synchronous: "EXTRA",
		Journal:     "PERSIST", // keeps the room that Reserve has made
	}
	if s.memory {
		o.Journal = "MEMORY"
	}
	if s.db, err = sqlite.Open(s.path, o); err != nil {
		return err
	}
	if s.conn, err = s.db.Conn(ctx); err != nil {
		_ = s.disconnect()
		return err
	}
	s.file = file
	if err := s.prepare(ctx); err != nil {
		_ = s.disconnect()
		return err
	}
	return nil
}

// prepare sets up a new connection. On a disk that is full an operator's must do without what it cannot change.
func (s *Store) prepare(ctx context.Context) error {
	if _, err := s.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA journal_size_limit = %d", reserveBytes)); err != nil {
		return err
	}
	pages, err := sqlite.Number(ctx, s.conn, "PRAGMA page_count")
	if err == nil && pages == 0 { // what is dropped can be given back to the disk; to be said before there is anything
		_, err = s.conn.ExecContext(ctx, "PRAGMA auto_vacuum = INCREMENTAL")
	}
	if err == nil {
		err = schema().Migrate(ctx, s.conn)
	}
	if err == nil {
		err = s.vacuumInSteps(ctx)
	}
	if !s.create && sqlite.IsFull(err) {
		return nil
	}
	return err
}

// vacuumInSteps has an older database give free pages back when it is asked to, not with every transaction, which may need
// more room on the disk than there is.
func (s *Store) vacuumInSteps(ctx context.Context) error {
	const full = 1
	mode, err := sqlite.Number(ctx, s.conn, "PRAGMA auto_vacuum")
	if err != nil || mode != full {
		return err
	}
	_, err = s.conn.ExecContext(ctx, "PRAGMA auto_vacuum = INCREMENTAL")
	if sqlite.Is(err, sqlite3.ErrReadonly) {
		return nil
	}
	return err
}

func (s *Store) disconnect() error {
	var errs []error
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	s.db, s.conn, s.file = nil, nil, nil
	return errors.Join(errs...)
}

// failed says which database failed, and what to do where that can be told.
func (s *Store) failed(err error) error {
	return sqlite.File{
		Holds: "dead letters", Path: s.path,
		Denied: "run this as the broker's user or as root, who can write it and its directory",
	}.Failed(err)
}
