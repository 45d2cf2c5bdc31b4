// Package command keeps the commands that a backend has for devices, and what happened to each, in SQLite.
//
// A command is stored before its sender gets the answer that it was accepted, and is unfinished until the device has answered or its
// time is up. The unfinished ones are also held in memory, so that what is asked about them, and what happens to them,
// does not wait for the disk; a goroutine writes all that has changed in one transaction. After a crash a command may be
// found a step behind, sent yet unanswered although the device has answered: a repeated request gets that answer
// again, because a device answers a repeated command as it did at first (docs/commands.md).
package command

import (
	"errors"
	"time"
)

// A State is how far a command has come. The strings are stable: the HTTP interface and the metrics use them.
type State string

// The states. A device's answer to an expired command still replaces that state: it was begun in time.
const (
	Queued    State = "queued"    // taken, and not yet given to the broker
	Sent      State = "sent"      // given to the broker
	Succeeded State = "succeeded" // the device's answer
	Failed    State = "failed"    // the device's answer: it tried
	Rejected  State = "rejected"  // the device's answer: it did not try
	Expired   State = "expired"   // no answer within its time to live
)

// States are all of them.
func States() []State { return []State{Queued, Sent, Succeeded, Failed, Rejected, Expired} }

// Final reports whether nothing more is waited for.
func (s State) Final() bool { return s != Queued && s != Sent }

// answer reports whether s is what a device may say.
func (s State) answer() bool { return s == Succeeded || s == Failed || s == Rejected }

// Limits of the specification.
const (
	// MaxKey is the longest idempotency key, in bytes.
	MaxKey = 255
	// MinTTL and MaxTTL bound a command's time to live. Mosquitto counts whole seconds, and takes an expiry of none for
	// never: what has less than two left is not given to it.
	MinTTL = 2 * time.Second
	MaxTTL = 7 * 24 * time.Hour
	// MaxResult is the longest result that is kept of a device's answer, in bytes.
	MaxResult = 64 << 10
)

// A Command is one command. It is a copy: nothing changes in it later.
type Command struct {
	ID      string // a UUID of version 8 in lower case: see NewID
	Device  string
	Key     string // the sender's idempotency key; "": none
	Body    []byte // one JSON value, as it came
	State   State
	Created time.Time
	Expires time.Time // in whole seconds; it is not delivered from then on
	// SentAt and FinishedAt are zero as long as that has not happened. SentAt is of the latest time.
	SentAt     time.Time
	FinishedAt time.Time
	Result     []byte // of the device's answer, one JSON value; nil: none
	// ResultDropped says that there was a result, longer than MaxResult.
	ResultDropped bool
}

// A Request is what a sender asks for.
type Request struct {
	Device string
	Key    string
	Body   []byte
	TTL    time.Duration // MinTTL to MaxTTL
}

// What the methods of a Store answer with where a caller tells the cases apart.
var (
	ErrNotFound   = errors.New("no such command")
	ErrKeyReused  = errors.New("this idempotency key was used for another command of the device")
	ErrDeviceFull = errors.New("the device has too many unfinished commands")
	ErrFull       = errors.New("there are too many unfinished commands")
	ErrClosed     = errors.New("the store of commands is closed")
)

// Counts is the state of a Store.
type Counts struct {
	ByState    map[State]int64 // of all that are kept
	Unfinished int             // queued or sent
	Bytes      int64           // of the bodies of the unfinished
	// Since Open.
	Created, Repeated          uint64 // new commands, and those that an idempotency key led to again
	Answers, Strays, Malformed uint64 // results that finished a command, that had none to finish, that could not be read
	WriteErrors                uint64 // transactions that failed
	Err                        error  // of the last transaction; nil: it succeeded
}
