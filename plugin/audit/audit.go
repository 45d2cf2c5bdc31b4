// Package audit writes the record of what was refused and what was changed: a file of JSON, one record a line, to append
// to alone. It holds no secret and no payload.
//
// Records are handed to a goroutine through a bounded queue; adding one never waits, neither for the disk nor for
// another. What finds the queue full, or the disk, is counted, and the count is written as soon as it can be.
//
// The file is rotated by size (FILE.1 is the latest), or by another program, logrotate for example, which then calls
// for Reopen by SIGHUP. The rotation is our own because the libraries that do it write from the caller's goroutine and
// leave one behind when they are closed.
package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/crash"
)

// Bounds of the implementation.
const (
	maxQueued = 4096
	// Denials: this many a second, after a burst.
	denialsPerSecond = 50
	denialsBurst     = 500
	// maxText cuts what others have written.
	maxText    = 256
	flushEvery = time.Second
	// rotateAgain is the time between two attempts after a rotation failed.
	rotateAgain  = time.Minute
	defaultMode  = 0o640
	bufferLength = 64 << 10
)

// The events. Their names are an interface.
const (
	Start    = "start"
	Stop     = "stop"
	Reload   = "reload"
	Denied   = "denied"   // a publish, will or subscription was refused
	Registry = "registry" // a device was changed
	Command  = "command"  // the backend sent one, or something has become of one
	// Unauthorized is a request to the HTTP listener without the valid token. Its count is of those that were left out since
	// the record of this event before.
	Unauthorized = "unauthorized"
	// Of the log itself: denials left out of it, with their number by reason, and records of any kind that were lost.
	Suppressed = "denials_suppressed"
	Lost       = "records_lost"
)

// A Record is one line. Members that are empty are left out.
type Record struct {
	Time      time.Time      `json:"time"` // set by Add where it is zero
	Event     string         `json:"event"`
	Device    string         `json:"device,omitempty"`
	Client    string         `json:"client,omitempty"`
	Topic     string         `json:"topic,omitempty"`
	MessageID string         `json:"message_id,omitempty"`
	Reason    string         `json:"reason,omitempty"` // of a denial, or of a command that was refused
	Change    string         `json:"change,omitempty"` // of a device: see registry.ChangeKind; of a command: "created", "refused" or see command.State
	Actor     string         `json:"actor,omitempty"`  // of a command that was created or refused, or of a request without the token: the client's address
	Result    string         `json:"result,omitempty"` // "ok" or "failed"
	Detail    string         `json:"detail,omitempty"`
	Version   string         `json:"version,omitempty"`
	Count     int            `json:"count,omitempty"`
	Reasons   map[string]int `json:"reasons,omitempty"`
}

// Options say where a log is written.
type Options struct {
	File     string
	MaxBytes int64 // the size at which the file is rotated; 0: never
	Keep     int   // how many rotated files are kept
}

// A Log is an audit log. All methods are safe for concurrent use, also on nil, which records nothing.
type Log struct {
	log   *slog.Logger
	queue chan Record
	calls chan func() // to be run by the goroutine
	stop  chan struct{}
	done  chan struct{}
	once  sync.Once
	lost  atomic.Int64           // records that found no room
	wrong atomic.Pointer[string] // why records cannot be written; nil: they can

	limiter *rate.Limiter
	mu      sync.Mutex // guards left
	left    map[string]int

	// The goroutine's.
	options Options
	file    *os.File
	written *bufio.Writer
	size    int64
	waiting int64     // records in written's buffer
	torn    bool      // the file may end within a line
	failed  bool      // the last write did
	stuck   time.Time // when the rotation failed; zero: it did not
}

// Open opens the file, which is made with mode 0640 if necessary, and starts to write. The error names the file.
func Open(o Options, log *slog.Logger) (*Log, error) {
	l := &Log{
		log:     log,
		queue:   make(chan Record, maxQueued),
		calls:   make(chan func(), 4),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		limiter: rate.NewLimiter(denialsPerSecond, denialsBurst),
		left:    make(map[string]int),
		options: o,
	}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("%w; the broker's user must be able to write to it and to its directory", err)
	}
	go l.run()
	return l, nil
}

// Add records something. It never waits.
func (l *Log) Add(r Record) {
	if l == nil {
		return
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	select {
	case l.queue <- r:
	default:
		l.lost.Add(1)
	}
}

// Sample reports whether a denial for this reason is to be added; where not, it is counted. reason must be one of a few.
func (l *Log) Sample(now time.Time, reason string) bool {
	if l == nil {
		return false
	}
	if l.limiter.AllowN(now, 1) {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left[reason]++
	return false
}

// Reopen closes the file and opens the one that has its name now, with other options if they have changed. It returns at
// once. Where that fails the old file is written on.
func (l *Log) Reopen(o Options) {
	if l == nil {
		return
	}
	l.call(func() {
		l.flush()
		options, file := l.options, l.file
		l.options = o
		if err := l.open(); err != nil { // which has changed nothing
			l.options = options
			l.log.Error("the audit log could not be reopened; continuing with the old file", "error", err)
			return
		}
		_ = file.Close()
	})
}

// call has the goroutine run do, unless it is busy with as much.
func (l *Log) call(do func()) {
	select {
	case l.calls <- do:
	default:
	}
}

// Close writes what is queued and closes the file. It returns within the limit, with an error where the disk did not.
func (l *Log) Close(limit time.Duration) error {
	if l == nil {
		return nil
	}
	l.once.Do(func() { close(l.stop) })
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-l.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("audit log: %s: a write has not finished after %v; not waiting any longer", l.options.File, limit)
	}
}

func (l *Log) run() {
	defer close(l.done)
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for l.step(ticker.C) {
	}
	l.finish()
}

// finish writes what is left when the log is closed.
func (l *Log) finish() {
	defer func() { _ = l.file.Close() }()
	defer crash.Log(l.log, "audit log")
	for n := len(l.queue); n > 0; n-- {
		r := <-l.queue
		l.write(&r)
	}
	l.writeCounts()
	l.flush()
	_ = l.file.Sync()
}

// step does one thing that is due, and reports whether there is more to come. A panic ends only that thing.
func (l *Log) step(tick <-chan time.Time) (more bool) {
	defer crash.Then(l.log, "audit log", func() { more = true })
	select {
	case <-l.stop:
		return false
	case do := <-l.calls:
		do()
	case r := <-l.queue:
		l.write(&r)
		if len(l.queue) == 0 {
			l.flush()
		}
	case <-tick:
		l.writeCounts()
		l.flush()
		l.look()
	}
	return true
}

// writeCounts writes how much was left out, if anything was.
func (l *Log) writeCounts() {
	l.mu.Lock()
	left := l.left
	if len(left) > 0 {
		l.left = make(map[string]int)
	}
	l.mu.Unlock()
	if len(left) > 0 {
		r := Record{Time: time.Now(), Event: Suppressed, Reasons: left}
		for _, n := range left {
			r.Count += n
		}
		l.write(&r)
	}
	if n := l.lost.Swap(0); n > 0 {
		l.write(&Record{Time: time.Now(), Event: Lost, Count: int(n)})
	}
}

func (l *Log) write(r *Record) {
	r.Time = r.Time.UTC()
	for _, text := range []*string{&r.Device, &r.Client, &r.Topic, &r.MessageID, &r.Detail, &r.Actor} {
		if len(*text) > maxText {
			*text = (*text)[:maxText]
		}
	}
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(r); err != nil {
		l.report(err)
		return
	}
	if l.options.MaxBytes > 0 && l.size > 0 && l.size+int64(line.Len()) > l.options.MaxBytes && time.Since(l.stuck) > rotateAgain {
		l.rotate()
	}
	if l.written.Available() < line.Len() {
		l.flush() // here, so that a record is in one write as a whole
	}
	if l.torn {
		_ = l.written.WriteByte('\n')
		l.torn = false
	}
	l.waiting++
	if _, err := l.written.Write(line.Bytes()); err != nil {
		l.report(err)
		return
	}
	l.size += int64(line.Len())
}

func (l *Log) flush() {
	if l.written.Buffered() > 0 {
		err := l.written.Flush()
		l.report(err)
		if err == nil {
			l.waiting = 0
		}
	}
}

// Writable reports whether records can be written to the file that has the log's name, as of a moment ago.
func (l *Log) Writable() error {
	if why := l.wrong.Load(); why != nil {
		return errors.New(*why)
	}
	return nil
}

// look finds out for Writable. It writes nothing: a line of its own would be no record.
func (l *Log) look() {
	err := func() error {
		if l.failed {
			return errors.New("the last record could not be written")
		}
		f, err := os.OpenFile(l.options.File, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("%w; send SIGHUP to the broker to create the file", err)
		}
		defer f.Close()
		is, err := l.file.Stat()
		if err != nil {
			return err
		}
		if named, err := f.Stat(); err != nil || !os.SameFile(is, named) {
			return errors.New("another file has its name now; send SIGHUP to the broker to write to that file")
		}
		return nil
	}()
	if err == nil {
		l.wrong.Store(nil)
		return
	}
	why := err.Error()
	l.wrong.Store(&why)
}

// report says in the broker's log when writing begins and ceases to fail.
func (l *Log) report(err error) {
	switch {
	case err != nil && !l.failed:
		l.log.Error("the audit log cannot be written; records are lost until this is corrected", "file", l.options.File, "error", err)
	case err == nil && l.failed:
		l.log.Info("the audit log can be written again", "file", l.options.File)
	}
	if l.failed = err != nil; l.failed {
		l.written.Reset(l.file) // what it held is lost: it would keep the error for ever
		l.lost.Add(l.waiting)
		l.waiting = 0
		if info, err := l.file.Stat(); err == nil {
			l.torn = info.Size() > 0 // a part of it may have been written
			l.size = info.Size()
		}
	}
}

// rotate puts the file aside and begins a new one. Where that fails the old one is written on, and it is tried again
// after a while: each record would fail again.
func (l *Log) rotate() {
	l.flush()
	err := l.putAside()
	switch {
	case err != nil && l.stuck.IsZero():
		l.log.Error("audit log rotation failed; continuing with the current file; the broker's user must be able to write to its directory",
			"file", l.options.File, "error", err)
	case err == nil && !l.stuck.IsZero():
		l.log.Info("audit log rotation works again", "file", l.options.File)
	}
	if l.stuck = time.Now(); err == nil {
		l.stuck = time.Time{}
	}
}

func (l *Log) putAside() error {
	aside := func(n int) string { return fmt.Sprintf("%s.%d", l.options.File, n) }
	for n := l.options.Keep; n > 1; n-- {
		if err := os.Rename(aside(n-1), aside(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	old := l.file
	if err := os.Rename(l.options.File, aside(1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.open(); err != nil {
		return err
	}
	_ = old.Close()
	return nil
}

func (l *Log) open() error {
	// O_NONBLOCK: opening a FIFO would otherwise wait for its reader.
	file, err := os.OpenFile(l.options.File, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, defaultMode)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		_ = file.Close()
		return fmt.Errorf("audit log: %s: %w", l.options.File, err)
	}
	l.file, l.size, l.torn = file, info.Size(), false
	l.written = bufio.NewWriterSize(io.Writer(file), bufferLength)
	return nil
}
