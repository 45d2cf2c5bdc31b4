// Package journal is the crash-safe log of accepted messages and of what happened to them. What was appended survives the
// end of the process at once, and a power failure after the next fsync; a damaged record costs only that record.
//
// # Files
//
// The log is a sequence of segments. A segment is two files, NUMBER.log and NUMBER.done (eight hexadecimal digits): the
// messages in the order of acceptance, and their outcomes in the order of arrival. The broker's thread is the only writer
// of the one, a goroutine of the other, so neither waits for the other's I/O and each may take back what it wrote in part.
// One file for both would need a lock around the offset, or O_APPEND, with which a partial record cannot be cut off
// without the risk of cutting what the other wrote behind it.
//
// Records follow one another, each with its own place, length and checksums. The other usual format, fixed blocks with
// the records cut to fit (LevelDB, Prometheus), finds its place again after damage at the next block: up to a block full
// of records is lost with the one that is damaged, and a long message is cut into many. Here a damaged body costs its
// record, because the header with its length has a checksum of its own; after a damaged header the next one is searched
// for, word by word, by a marker together with the place where it stands. Checksums start from a random number that is
// the segment's own: what a device put into a payload, and what a file's blocks held before, is never taken for a record.
//
// # What is kept of settled messages
//
// A segment of which half or more is settled is collected (collect.go): what still waits in it is copied into a segment
// of another kind, a collector, together with what is kept of the settled messages, 40 bytes each (ids.go); then the
// segment is dropped. So the journal holds the backlog, and the ids that recovery needs. Positions stay the names of
// messages wherever they are moved to.
//
// Open begins a new segment: a place in a log is never used twice, so no outcome that outlived its message in a failure
// of the power can be taken for another's.
package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Errors that a caller may want to distinguish.
var (
	// ErrFull: no room, by MaxBytes or on the disk. It passes when room is made.
	ErrFull = errors.New("journal: full")
	// ErrShare: the device has taken its share of the journal. It passes when its messages are settled, or its ids old.
	ErrShare = errors.New("journal: the device has used up its share of the journal")
	// ErrTooLarge: the message cannot be stored, however much room there is.
	ErrTooLarge = errors.New("journal: message too large")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal: closed")
	// ErrLocked: another process has the journal open.
	ErrLocked = errors.New("in use")
	// ErrNotYet is for BeforeDrop to return where it is too early, which is no failure.
	ErrNotYet = errors.New("journal: not yet")
	// ErrNotFound: the segment was dropped, or never was.
	ErrNotFound = errors.New("journal: no such message")
)

// Position is the lasting name of an accepted message: the segment's number in the upper 32 bits, the place in its log in
// the lower. Positions ascend in the order of acceptance. 0 is none.
type Position uint64

func (p Position) segment() uint32 { return uint32(p >> 32) }
func (p Position) offset() uint32  { return uint32(p) }

// String returns the position as the segment and the place in it, both hexadecimal.
func (p Position) String() string { return fmt.Sprintf("%08x:%x", p.segment(), p.offset()) }

const (
	minBytes        = 64 << 10 // of MaxBytes
	minSegmentBytes = 16 << 10
	maxSegmentBytes = 1 << 30
	defaultSegment  = 64 << 20 // at most
	segmentsInAll   = 64       // of the default size
)

// Options of [Open].
type Options struct {
	// Dir is the directory of the journal, and of nothing else. It is created, but not its parent.
	Dir string
	// MaxBytes bounds the segments' files together, the outcomes to come included; at least 64 KiB.
	MaxBytes int64
	// Sync is the time between two fsyncs, and what a power failure may cost. 0: an fsync in every Append.
	Sync time.Duration
	// SegmentBytes is the size at which a segment is full, 16 KiB to 1 GiB; a segment passes it while the next is not
	// ready, and for a message that is larger. 0: 1/64 of MaxBytes, at most 64 MiB.
	SegmentBytes int64
	// DeviceBytes is how much one device's messages and ids may take. 0: any number.
	DeviceBytes int64
	// Keep is how long a message's id must outlive its timestamp, whatever became of it: as long as recovery must find it to
	// rebuild the replay memory.
	Keep time.Duration
	// BeforeDrop, if not nil, is called by the journal's goroutine before segments are dropped, the newest timestamp in
	// which is newest (unix seconds). It saves what recovery will not find any more ([Journal.SaveState]). With an error
	// nothing is dropped, and it is called again within seconds; [ErrNotYet] is not logged.
	BeforeDrop func(newest int64) error
	Log        *slog.Logger

	// Of tests; nil: time.Now, os.File.Sync, and nothing.
	now   func() time.Time
	fsync func(*os.File) error
	after func(step string) // called between two changes of the journal's files by its goroutine
}

// Recovery is given every message that is in the journal while [Open] runs, oldest first: those that wait and those that
// are settled. Of messages that were settled a while ago only ids are left; they are given with [Settled] and position 0,
// in no order, and have no topic, no payload and no time of acceptance. The slices of a are valid until it returns.
type Recovery func(pos Position, a *Accepted, o Outcome)

// Journal is an open journal. Append and Close belong to the broker's thread; every other method is safe for concurrent
// use.
//
// Append never takes a lock that is held during I/O and never creates a file. The next segment is made ready, in the
// background, when the former is begun; should it be needed sooner, the current one grows beyond SegmentBytes.
type Journal struct {
	options Options
	log     *slog.Logger
	lock    *os.File

	// The appending thread's.
	active *segment
	buf    []byte

	next    atomic.Pointer[segment] // ready to be begun
	failed  atomic.Pointer[failure] // the latest
	refused atomic.Pointer[error]   // why the latest Append failed, if it did
	dirty   atomic.Bool             // the active log has what no fsync covers
	closed  atomic.Bool
	starved atomic.Bool           // outcomes found no room on the disk: what there is, is theirs
	lost    atomic.Pointer[error] // why the files are not to be trusted, if they are not
	culprit atomic.Pointer[share] // the device that was refused for its share last, until that is logged

	used      atomic.Int64 // bytes, against MaxBytes
	accepted  atomic.Uint64
	delivered atomic.Uint64
	dead      atomic.Uint64
	counts    counts

	wake    chan struct{} // holds one
	quit    chan struct{}
	stopped chan struct{}

	mu       sync.Mutex // guards what follows, and is never held during I/O
	segments map[uint32]*segment
	current  *segment   // active
	sealed   []*segment // full, not yet synced
	open     []*segment // with a reader
	moved    moved
	reads    uint64

	outcomesMu sync.Mutex // guards outcomes, and is never held during I/O
	outcomes   []settled

	shares shares
	home   home

	stateMu sync.Mutex // one SaveState at a time

	background background
}

// Open locks the directory, passes once over the journal, and makes it ready for Append. It fails where nothing could be
// appended, or where a newer version of the program wrote; not for damage, which is logged and counted in [Stats].
func Open(o Options, recovery Recovery) (_ *Journal, err error) {
	if o.now == nil {
		o.now = time.Now
	}
	if o.fsync == nil {
		o.fsync = (*os.File).Sync
	}
	if o.after == nil {
		o.after = func(string) {}
	}
	if o.MaxBytes < minBytes {
		return nil, fmt.Errorf("journal: MaxBytes is %d, at least %d are needed", o.MaxBytes, minBytes)
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = min(o.MaxBytes/segmentsInAll, defaultSegment)
	}
	o.SegmentBytes = min(max(o.SegmentBytes, minSegmentBytes), maxSegmentBytes)

	lock, err := lockDirectory(o.Dir)
	if err != nil {
		return nil, err
	}
	j := &Journal{
		options:  o,
		log:      o.Log,
		lock:     lock,
		wake:     make(chan struct{}, 1),
		quit:     make(chan struct{}),
		stopped:  make(chan struct{}),
		segments: make(map[uint32]*segment),
		moved:    make(moved),
		shares:   newShares(o.DeviceBytes),
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if j.home, err = homeOf(o.Dir, lock); err != nil {
		return nil, err
	}
	last, err := j.recover(recovery)
	if err != nil {
		return nil, err
	}
	j.background.last = last
	if j.active, err = j.create(kindLog); err != nil {
		return nil, fmt.Errorf("journal: a new segment: %w", err)
	}
	j.current = j.active
	go j.run()
	return j, nil
}

// SaveState saves data, at most 64 MiB, under a name of letters a-z and '-', instead of what was saved before: durably,
// and so that [LoadState] finds either the one or the other. Not for the broker's thread.
func (j *Journal) SaveState(name string, data []byte) error {
	if name == droppedState {
		return fmt.Errorf("journal: state name %q is the journal's own", name)
	}
	j.stateMu.Lock()
	defer j.stateMu.Unlock()
	return saveState(j.options.Dir, name, data, j.options.fsync)
}

// closeTimeout bounds Close on a disk that does not answer.
const closeTimeout = 3 * time.Second

// Close writes the outcomes that wait, makes everything durable and lets another process open the journal. It takes at
// most 3 seconds; what it could not finish by then is as after a crash. The broker's thread only.
func (j *Journal) Close() error {
	if j.closed.Swap(true) {
		return nil
	}
	close(j.quit)
	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	select {
	case <-j.stopped:
		return j.background.closeErr
	case <-timeout.C:
		return fmt.Errorf("journal: the disk did not finish within %v; the latest messages may not be safe from a failure of the power", closeTimeout)
	}
}

// poke has the goroutine look at what there is to do.
func (j *Journal) poke() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}
