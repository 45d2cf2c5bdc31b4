// Package journal is the crash-safe log of accepted messages and of what became of them. What was appended survives the
// end of the process at once, and a failure of the power after the next fsync; a damaged record costs that record alone.
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
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Errors that a caller may want to tell apart.
var (
	// ErrFull: no room, by MaxBytes or on the disk. It passes when room is made.
	ErrFull = errors.New("journal: full")
	// ErrShare: the device has taken its share of the journal. It passes when its messages are settled, or its ids old.
	ErrShare = errors.New("journal: the device has taken its share of the journal")
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

var errStarved = fmt.Errorf("%w: the room that is left on the disk is for what became of earlier messages", ErrFull)

// Position is the lasting name of an accepted message: the segment's number in the upper 32 bits, the place in its log in
// the lower. Positions ascend in the order of acceptance. 0 is none.
type Position uint64

func (p Position) segment() uint32 { return uint32(p >> 32) }
func (p Position) offset() uint32  { return uint32(p) }

// String returns the position as the segment and the place in it, both hexadecimal.
func (p Position) String() string { return fmt.Sprintf("%08x:%x", p.segment(), p.offset()) }

// Outcome is what became of an accepted message. The zero value is Pending.
type Outcome uint8

// Outcomes.
const (
	Pending   Outcome = iota
	Delivered         // the backend has it
	Dead              // it is a dead letter, and durably so
	Settled           // one or the other: of the message no more than its id is left
)

func (o Outcome) String() string {
	switch o {
	case Pending:
		return "pending"
	case Delivered:
		return "delivered"
	case Dead:
		return "dead"
	case Settled:
		return "settled"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

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
	// Sync is the time between two fsyncs, and what a failure of the power may cost. 0: an fsync in every Append.
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

// A settled message waits for its outcome to be written.
type settled struct {
	pos  Position
	at   Position // where it is: pos, unless it was moved
	kind Outcome
}

// A failure is an fsync that failed.
type failure struct {
	segment *segment
	err     error
}

type counts struct {
	damaged, tornBytes, missing, unreadable, foreign, damagedOutcomes atomic.Uint64
	overShare, refused, dropped, syncs, syncErrors, panics            atomic.Uint64
	syncNanos, syncLast, syncMax                                      atomic.Int64
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

// Append stores a message: with one write(2), and an fsync if Sync is 0. The message is stored if and only if the error
// is nil. Nothing of a is kept. The broker's thread only.
func (j *Journal) Append(a *Accepted) (Position, error) {
	pos, err := j.append(a)
	if err != nil {
		j.counts.refused.Add(1)
		if err == ErrShare {
			j.noteShare(a.Device)
		} else if !errors.Is(err, ErrTooLarge) {
			if r := j.refused.Load(); r == nil || !errors.Is(err, ErrFull) || !errors.Is(*r, ErrFull) {
				reason := err // escapes, which err must not do on the way of every message
				j.refused.Store(&reason)
				j.poke()
			}
		}
		return 0, err
	}
	if j.refused.Load() != nil {
		j.refused.Store(nil)
		j.poke()
	}
	return pos, nil
}

func (j *Journal) append(a *Accepted) (Position, error) {
	if j.closed.Load() {
		return 0, ErrClosed
	}
	if lost := j.lost.Load(); lost != nil {
		return 0, *lost
	}
	n, err := recordSize(a)
	if err != nil {
		return 0, err
	}
	if int64(n) > j.options.MaxBytes-2*logStart {
		return 0, fmt.Errorf("%w: %d bytes, the journal may take %d", ErrTooLarge, n, j.options.MaxBytes)
	}
	cost := int64(n) + slotSize
	share := j.shares.of(a.Device)
	if a.Waited == 0 && j.shares.full(share, cost) { // what an operator requeues makes room among the dead letters
		return 0, ErrShare
	}
	if j.starved.Load() {
		return 0, errStarved
	}
	if j.used.Load()+cost > j.options.MaxBytes {
		if j.active.end-logStart >= j.options.SegmentBytes/2 {
			// What is settled in it takes room until it is sealed, and nothing else would seal it.
			if next := j.next.Swap(nil); next != nil {
				j.begin(next)
			}
		}
		return 0, ErrFull
	}
	s, err := j.room(int64(n))
	if err != nil {
		return 0, err
	}

	offset := uint32(s.end)
	j.buf = appendRecord(j.buf[:0], a, offset, s.seed)
	_, err = s.log.WriteAt(j.buf, s.end)
	if cap(j.buf) > 1<<20 {
		j.buf = nil
	}
	if err != nil {
		// What was written of it is cut off. Where that fails it is overwritten by the next, or found torn.
		_ = s.log.Truncate(s.end)
		if isFull(err) {
			return 0, fmt.Errorf("%w: %w", ErrFull, err)
		}
		return 0, fmt.Errorf("journal: %w", err)
	}
	if j.options.Sync == 0 {
		if err := j.timedSync(s.log); err != nil {
			_ = s.log.Truncate(s.end)
			j.distrust(s, err)
			return 0, fmt.Errorf("journal: %w", err)
		}
	}
	s.end += int64(n)
	s.accepted.add(offset)
	s.newest = max(s.newest, a.Timestamp)
	j.used.Add(cost)
	share.bytes.Add(cost)
	j.accepted.Add(1)
	if j.options.Sync != 0 && !j.dirty.Load() {
		j.dirty.Store(true)
		j.poke()
	}
	return s.position(offset), nil
}

// room returns the segment for a record of n bytes, which is the next one if the active is full or not to be trusted.
func (j *Journal) room(n int64) (*segment, error) {
	s := j.active
	broken := s.distrusted.Load()
	if !broken && (s.end+n <= j.options.SegmentBytes || s.accepted.count == 0) {
		return s, nil
	}
	next := j.next.Swap(nil)
	if next == nil {
		if broken {
			return nil, fmt.Errorf("journal: the disk failed: %w", j.failed.Load().err)
		}
		if s.end+n > 1<<32-1 {
			j.poke()
			return nil, fmt.Errorf("%w: no next segment yet", ErrFull)
		}
		return s, nil
	}
	j.begin(next)
	return next, nil
}

// begin seals the active segment and goes on with the next.
func (j *Journal) begin(next *segment) {
	j.mu.Lock()
	j.sealed = append(j.sealed, j.active)
	j.current = next
	j.mu.Unlock()
	j.active = next
	j.poke()
}

// Done says what became of the message at pos, once for each. It returns at once: the outcome is written within some
// 20 ms by the journal's goroutine. One that a crash loses makes the message pending again.
func (j *Journal) Done(pos Position, o Outcome) {
	switch o {
	case Delivered:
		j.delivered.Add(1)
	case Dead:
		j.dead.Add(1)
	default:
		return
	}
	j.outcomesMu.Lock()
	j.outcomes = append(j.outcomes, settled{pos: pos, kind: o})
	first := len(j.outcomes) == 1
	j.outcomesMu.Unlock()
	if first {
		j.poke()
	}
}

// Read reads the message at pos into a, whose slices are parts of buf, or of a larger one if it is too small. It returns
// the buffer for the next call. The error is [ErrNotFound] if there is no such segment, [ErrDamaged] if the record is not
// as it was written; the message is lost then. Other errors are the disk's, and may pass.
func (j *Journal) Read(pos Position, a *Accepted, buf []byte) ([]byte, error) {
	for tries := 0; ; tries++ {
		s, at, f, err := j.reader(pos)
		if errors.Is(err, errMoved) && tries < 10 {
			continue
		}
		if err != nil {
			return buf, err
		}
		buf, err = readRecord(f, at.offset(), s.seed, a, buf)
		// Another reader may have closed the file, to open its own.
		if errors.Is(err, os.ErrClosed) && tries < 10 && !j.closed.Load() {
			continue
		}
		if err != nil {
			return buf, fmt.Errorf("journal: %s: %w", pos, err)
		}
		return buf, nil
	}
}

const firstRead = 1024 // bytes; most records are shorter

func readRecord(f io.ReaderAt, offset, seed uint32, a *Accepted, buf []byte) ([]byte, error) {
	if cap(buf) < firstRead {
		buf = make([]byte, firstRead)
	}
	buf = buf[:cap(buf)]
	n, err := f.ReadAt(buf[:firstRead], int64(offset))
	if n < recordHeader {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: %w", ErrDamaged, errHeader)
		}
		return buf, err
	}
	length, ok := parseHeader(buf, offset, seed)
	if !ok {
		return buf, fmt.Errorf("%w: %w", ErrDamaged, errHeader)
	}
	if whole := recordHeader + length; whole > n {
		if whole > len(buf) {
			larger := make([]byte, whole)
			copy(larger, buf[:n])
			buf = larger
		}
		if _, err := f.ReadAt(buf[n:whole], int64(offset)+int64(n)); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: %w", ErrDamaged, errBody)
			}
			return buf, err
		}
	}
	r := record{Accepted: Accepted{Device: a.Device}}
	if err := parseRecord(buf, seed, &r); err != nil {
		return buf, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if r.ids != nil {
		return buf, fmt.Errorf("%w: %w", ErrDamaged, errHeader)
	}
	*a = r.Accepted
	return buf, nil
}

// maxReaders is how many logs are open for reading.
const maxReaders = 16

// errMoved: the message was moved meanwhile, so it is to be looked for again.
var errMoved = errors.New("journal: moved")

// reader returns where the message of a position is: its segment, the place in it, and its log.
func (j *Journal) reader(pos Position) (*segment, Position, *os.File, error) {
	j.mu.Lock()
	at := j.resolve(pos)
	s := j.segments[at.segment()]
	if s != nil && s.reader != nil {
		j.reads++
		s.used = j.reads
		f := s.reader
		j.mu.Unlock()
		return s, at, f, nil
	}
	j.mu.Unlock()
	if j.closed.Load() {
		return nil, 0, nil, ErrClosed
	}
	if s == nil {
		return nil, 0, nil, fmt.Errorf("%w: %s", ErrNotFound, pos)
	}
	f, err := os.Open(filepath.Join(j.options.Dir, logName(s.number)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil, j.notFound(pos, at)
	}
	if err != nil {
		return nil, 0, nil, fmt.Errorf("journal: %w", err)
	}

	var superfluous *os.File
	j.mu.Lock()
	switch {
	case s.reader != nil: // another goroutine was faster
		f, superfluous = s.reader, f
	case j.closed.Load() || j.segments[s.number] != s:
		j.mu.Unlock()
		f.Close()
		return nil, 0, nil, j.notFound(pos, at)
	default:
		if len(j.open) == maxReaders {
			oldest := 0
			for i, o := range j.open {
				if o.used < j.open[oldest].used {
					oldest = i
				}
			}
			superfluous = j.open[oldest].reader
			j.open[oldest].reader = nil
			j.open[oldest] = s
		} else {
			j.open = append(j.open, s)
		}
		s.reader = f
	}
	j.reads++
	s.used = j.reads
	j.mu.Unlock()
	if superfluous != nil {
		superfluous.Close()
	}
	return s, at, f, nil
}

// notFound says why the message of a position was not found where it was a moment ago.
func (j *Journal) notFound(pos, at Position) error {
	j.mu.Lock()
	moved := j.resolve(pos) != at
	j.mu.Unlock()
	if moved {
		return errMoved
	}
	// Where the directory is away, which may pass, nothing can be said of what is in it.
	if err := j.home.check(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return fmt.Errorf("%w: %s", ErrNotFound, pos)
}

// SaveState saves data, at most 64 MiB, under a name of letters a-z and '-', in place of what was saved before: durably,
// and so that [LoadState] finds either the one or the other. Not for the broker's thread.
func (j *Journal) SaveState(name string, data []byte) error {
	if name == droppedState {
		return fmt.Errorf("journal: state name %q is the journal's own", name)
	}
	j.stateMu.Lock()
	defer j.stateMu.Unlock()
	return saveState(j.options.Dir, name, data, j.options.fsync)
}

// Stats is the state of a journal. Accepted = Delivered + Dead + Pending, over the life of the journal: across restarts,
// and including segments that were dropped. Only messages that recovery found damaged are in none of them any more.
type Stats struct {
	Accepted, Delivered, Dead, Pending uint64

	Bytes, MaxBytes int64
	Segments        int
	Distrusted      int // segments, an fsync of which failed

	// Since Open.
	Refused    uint64 // Appends that failed
	OverShare  uint64 // of them, those of devices that had taken their share
	Dropped    uint64 // segments
	Syncs      uint64 // of logs
	SyncErrors uint64
	SyncTime   time.Duration // of all together
	SyncLast   time.Duration
	SyncMax    time.Duration
	Panics     uint64

	// Found by Open.
	Damaged         uint64 // messages that were lost to damage
	TornBytes       uint64 // cut off at the ends of logs
	Missing         uint64 // segments
	Unreadable      uint64 // segments without a header that could be used; their files are left alone
	Foreign         uint64 // files that are not the journal's
	DamagedOutcomes uint64 // each makes a message pending again

	// Err says why the journal accepts no messages, as far as known; nil: it does.
	Err error
}

// Stats returns the current state.
func (j *Journal) Stats() Stats {
	c := &j.counts
	st := Stats{
		MaxBytes:   j.options.MaxBytes,
		Bytes:      j.used.Load(),
		Refused:    c.refused.Load(),
		OverShare:  c.overShare.Load(),
		Dropped:    c.dropped.Load(),
		Syncs:      c.syncs.Load(),
		SyncErrors: c.syncErrors.Load(),
		SyncTime:   time.Duration(c.syncNanos.Load()),
		SyncLast:   time.Duration(c.syncLast.Load()),
		SyncMax:    time.Duration(c.syncMax.Load()),
		Panics:     c.panics.Load(),

		Damaged:         c.damaged.Load(),
		TornBytes:       c.tornBytes.Load(),
		Missing:         c.missing.Load(),
		Unreadable:      c.unreadable.Load(),
		Foreign:         c.foreign.Load(),
		DamagedOutcomes: c.damagedOutcomes.Load(),
	}
	// A message is accepted before it is settled, so it is never counted as settled alone.
	st.Delivered, st.Dead = j.delivered.Load(), j.dead.Load()
	st.Accepted = max(j.accepted.Load(), st.Delivered+st.Dead)
	st.Pending = st.Accepted - st.Delivered - st.Dead

	j.mu.Lock()
	st.Segments = len(j.segments)
	for _, s := range j.segments {
		if s.distrusted.Load() {
			st.Distrusted++
		}
	}
	if j.current.distrusted.Load() && j.next.Load() == nil {
		st.Err = j.failed.Load().err
	}
	j.mu.Unlock()
	if r := j.refused.Load(); r != nil && st.Err == nil {
		st.Err = *r
	}
	if lost := j.lost.Load(); lost != nil {
		st.Err = *lost
	}
	if j.closed.Load() {
		st.Err = ErrClosed
	}
	return st
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
