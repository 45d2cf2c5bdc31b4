package device

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// A message is one in the outbox. What is signed is kept, so that the same bytes can be sent again.
type message struct {
	number  uint64
	topic   string
	payload []byte
	command string // the command that it answers; "": data

	id        string // of what is signed; "": nothing is yet
	at        int64  // its timestamp
	signature string // in hexadecimal
	tries     int    // how often these bytes were sent, at least once if they were signed before this process
	uncertain bool   // they were sent, and no acknowledgement came
	repeated  bool   // an earlier signing was uncertain
	sent      int    // in all

	delivery *Delivery // nil: an earlier process has left it, or it is an answer

	// Of the engine's goroutine alone.
	phase     phase
	packet    uint16
	resign    bool
	held      bool          // nothing else is sent before it
	delay     time.Duration // before the next try of one that is held
	began     time.Time     // when it was sent last
	due       time.Time     // when it is tried again, or is no longer waited for
	notice    *Notice
	stale     int // refusals as stale or future
	unnoticed int // refusals without a reason
}

// A phase is where a message is on the way to its outcome.
type phase int

const (
	idle     phase = iota // not sent over this connection
	inFlight              // sent, without an acknowledgement
	refused               // refused; the notice may come until due
	waiting               // to be sent again when it is due
)

// A store is a Device's state on the disk and in memory: the outbox, the memory of commands, and the clock's offset. What
// changes it is a record, which is written and then applied; opening applies them all.
type store struct {
	log  *recordLog
	lock *os.File

	deviceID string
	next     uint64 // the number of the next message
	queue    []*message
	bytes    int // of all payloads
	answers  int // messages that are answers
	offset   int64
	commands *CommandMemory
	answered map[[16]byte][]byte // the payload of each answer, of commands in the memory
}

// A record is one change. Raw is behind the JSON text and a newline.
type record struct {
	Op        string   `json:"op"`
	Number    uint64   `json:"n,omitempty"`
	Numbers   []uint64 `json:"ns,omitempty"`
	ID        string   `json:"id,omitempty"`
	Topic     string   `json:"topic,omitempty"`
	Command   string   `json:"command,omitempty"`
	At        int64    `json:"at,omitempty"`
	Signature string   `json:"signature,omitempty"`
	Repeated  bool     `json:"repeated,omitempty"`
	Sent      int      `json:"sent,omitempty"`
	Raw       []byte   `json:"-"`
}

// The operations.
const (
	opDevice  = "device"  // ID: whose state this is
	opQueue   = "queue"   // Number, Topic, Raw; Command of an answer; Sent and Repeated of one that is written again
	opSign    = "sign"    // Number, ID, At, Signature, Repeated: signed, and about to be sent
	opSent    = "sent"    // Numbers: the same bytes are about to be sent again
	opDone    = "done"    // Number: has its outcome
	opNext    = "next"    // Number: of the next message
	opOffset  = "offset"  // At: of the clock
	opCommand = "command" // ID, At: a command and its expiry
	opAnswer  = "answer"  // ID, Raw: what a command is answered with
	opFloor   = "floor"   // At: of the memory of commands
)

func (r record) encode() []byte {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // there is nothing in it that JSON does not have
	}
	return append(append(text, '\n'), r.Raw...)
}

func decode(b []byte) (r record, err error) {
	text, raw, found := bytes.Cut(b, []byte("\n"))
	if !found {
		return r, errDamaged
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, errDamaged
	}
	r.Raw = bytes.Clone(raw)
	return r, nil
}

const (
	logName  = "outbox"
	lockName = "lock"
)

// openStore opens the state in a directory, which is made if there is none.
func openStore(dir, deviceID string, commands int) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(err, lock.Close())
	}
	s := &store{lock: lock, next: 1, commands: NewCommandMemory(commands), answered: map[[16]byte][]byte{}}
	s.log, err = openLog(filepath.Join(dir, logName), func(b []byte) error {
		r, err := decode(b)
		if err != nil {
			return err
		}
		return s.apply(r)
	})
	if err == nil && s.deviceID != "" && s.deviceID != deviceID {
		err = errors.Join(fmt.Errorf("device: %s is the state of %q, not of %q", dir, s.deviceID, deviceID), s.log.close())
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	for _, m := range s.queue {
		m.uncertain = m.id != ""
	}
	s.log.base = 0 // what the file would be if it were written again now
	for payload := range s.snapshot() {
		s.log.base += recordHeader + int64(len(payload))
	}
	if s.deviceID == "" {
		if err := s.write(true, record{Op: opDevice, ID: deviceID}); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *store) close() error { return errors.Join(s.log.close(), s.lock.Close()) }

// write writes records and applies them. With sync they are on the disk then. After an error none of them counts.
func (s *store) write(sync bool, records ...record) error {
	if s.log.broken || s.log.grown() {
		if err := s.log.replace(s.snapshot()); err != nil {
			return err
		}
	}
	encoded := make([][]byte, len(records))
	for i, r := range records {
		encoded[i] = r.encode()
	}
	if err := s.log.add(sync, encoded...); err != nil {
		return err
	}
	for _, r := range records {
		if err := s.apply(r); err != nil {
			panic(err) // this package has made it
		}
	}
	return nil
}

// find returns the message of a number, nil if it is not in the outbox.
func (s *store) find(number uint64) (*message, int) {
	i, found := slices.BinarySearchFunc(s.queue, number, func(m *message, n uint64) int {
		switch {
		case m.number < n:
			return -1
		case m.number > n:
			return 1
		}
		return 0
	})
	if !found {
		return nil, i
	}
	return s.queue[i], i
}

func (s *store) apply(r record) error {
	m, at := s.find(r.Number)
	command, isCommand := parseUUID(r.ID)
	switch r.Op {
	case opDevice:
		s.deviceID = r.ID
	case opQueue:
		if m != nil || at != len(s.queue) || r.Number < 1 {
			return errDamaged
		}
		s.queue = append(s.queue, &message{number: r.Number, topic: r.Topic, payload: r.Raw, command: r.Command, sent: r.Sent, repeated: r.Repeated})
		s.bytes += len(r.Raw)
		s.next = r.Number + 1
		if r.Command != "" {
			s.answers++
		}
	case opSign:
		if m == nil {
			return errDamaged
		}
		m.id, m.at, m.signature, m.repeated = r.ID, r.At, r.Signature, r.Repeated
		m.tries, m.uncertain = 1, false
		m.sent++
	case opSent:
		for _, n := range r.Numbers {
			if m, _ := s.find(n); m != nil {
				m.sent++
				m.tries++
			}
		}
	case opDone:
		if m == nil {
			return errDamaged
		}
		s.remove(m, at)
	case opNext:
		s.next = max(s.next, r.Number)
	case opOffset:
		s.offset = r.At
	case opCommand:
		if !isCommand {
			return errDamaged
		}
		if _, left, someLeft := s.commands.take(command, r.At); someLeft {
			delete(s.answered, left)
		}
	case opAnswer:
		// One that had no room in the memory is answered, and not kept.
		if _, kept := s.commands.table[command]; isCommand && kept {
			s.answered[command] = r.Raw
		}
	case opFloor:
		s.commands.floor = max(s.commands.floor, r.At)
	default:
		return fmt.Errorf("a record of another version: %q", r.Op)
	}
	return nil
}

func (s *store) remove(m *message, at int) {
	s.queue = slices.Delete(s.queue, at, at+1)
	s.bytes -= len(m.payload)
	if m.command != "" {
		s.answers--
	}
}

// forget is for a message whose outcome could not be written. The file is written again before anything else is.
func (s *store) forget(m *message) {
	if found, at := s.find(m.number); found == m {
		s.remove(m, at)
	}
}

// snapshot is all there is, as records.
func (s *store) snapshot() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		put := func(r record) bool { return yield(r.encode()) }
		if s.deviceID != "" && !put(record{Op: opDevice, ID: s.deviceID}) || !put(record{Op: opOffset, At: s.offset}) {
			return
		}
		for id, expires := range s.commands.table {
			text := formatUUID(id)
			if !put(record{Op: opCommand, ID: text, At: expires}) {
				return
			}
			if answer, ok := s.answered[id]; ok && !put(record{Op: opAnswer, ID: text, Raw: answer}) {
				return
			}
		}
		if !put(record{Op: opFloor, At: s.commands.floor}) {
			return
		}
		for _, m := range s.queue {
			queued := record{Op: opQueue, Number: m.number, Topic: m.topic, Command: m.command, Sent: m.sent, Repeated: m.repeated, Raw: m.payload}
			if m.id != "" {
				queued.Sent-- // signing counts one
			}
			if !put(queued) {
				return
			}
			if m.id != "" && !put(record{Op: opSign, Number: m.number, ID: m.id, At: m.at, Signature: m.signature, Repeated: m.repeated}) {
				return
			}
		}
		put(record{Op: opNext, Number: s.next})
	}
}
