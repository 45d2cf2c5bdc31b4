package outbox

import (
	"bytes"
	"math"
	"path/filepath"
	"time"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/replay"
)

// keepBeyond is how much longer than the tolerance the journal keeps a message: ids are forgotten some seconds late.
const keepBeyond = 5 * time.Second

// A recovery rebuilds from the journal, in one pass, what the process before knew: which ids were accepted, and what the
// backend has not taken yet.
type recovery struct {
	registry  Registry
	seen      *replay.Set
	forwarder *forward.Forwarder
	now       int64 // seconds since 1970
	tolerance int64
	entry     func(*journal.Accepted) replay.Entry
	isAnswer  func(topic []byte) bool
	answers   []Answer

	device   string // of the message before, a string that lives anyway
	serial   uint32
	unknown  map[string]string // devices that are not registered any more, by themselves
	messages int
	err      error
}

// An Answer is a device's to a command, acknowledged to the device, and not stored yet.
type Answer struct {
	Position journal.Position
	Device   string
	Payload  []byte // of the envelope
	At       time.Time
}

// take is given every message in the journal, in the order in which they were accepted.
func (r *recovery) take(pos journal.Position, a *journal.Accepted, o journal.Outcome) {
	r.messages++
	if a.Device != r.device || r.messages == 1 {
		if err := r.switchTo(a.Device); err != nil {
			r.err = err
			return
		}
	}
	r.remember(a)
	if o != journal.Pending {
		return
	}
	if r.isAnswer != nil && r.isAnswer(a.Topic) {
		r.answers = append(r.answers, Answer{pos, r.device, bytes.Clone(a.Payload), a.AcceptedAt})
		return
	}
	r.forwarder.Restore(r.device, uint64(pos), a.Size())
}

func (r *recovery) switchTo(device string) (err error) {
	if registered := r.registry.Lookup([]byte(device)); registered != nil {
		r.device, r.serial = registered.ID, registered.Serial
		return nil
	}
	id, ok := r.unknown[device]
	if !ok {
		id = device
		r.unknown[id] = id
	}
	r.device = id
	r.serial, err = r.registry.Reserve(id)
	return err
}

// remember has the replay memory know a message.
func (r *recovery) remember(a *journal.Accepted) {
	outdated := []replay.Span{{First: a.Timestamp, Last: a.Timestamp}}
	if a.Timestamp < r.now-r.tolerance {
		r.forget(outdated)
		return
	}
	if r.seen.Insert(r.serial, a.MessageID, a.Timestamp, r.entry(a)) == replay.Full {
		// It cannot be remembered, so nothing with its timestamp can be accepted.
		r.forget(outdated)
	}
}

func (r *recovery) forget(span []replay.Span) {
	if !r.seen.Forgotten(span[0].First) {
		r.seen.Restore(span)
	}
}

// openJournal opens the journal and rebuilds what is in it.
func (b *Outbox) openJournal(o *Options) error {
	now := time.Now()
	dir := filepath.Join(o.StateDir, journal.DirName)
	tolerance := int64(o.Tolerance / time.Second)
	if err := restoreForgotten(dir, o.Seen, now.Unix(), tolerance, o.Log); err != nil {
		return err
	}
	r := recovery{
		registry: o.Registry, seen: o.Seen, forwarder: b.forwarder, now: now.Unix(), tolerance: tolerance,
		entry: o.Entry, isAnswer: o.IsAnswer, unknown: make(map[string]string),
	}
	j, err := journal.Open(journal.Options{
		Dir:         dir,
		MaxBytes:    o.Journal.MaxBytes,
		DeviceBytes: o.Journal.deviceBytes(),
		Sync:        o.Journal.Sync,
		Keep:        time.Duration(tolerance)*time.Second + keepBeyond,
		BeforeDrop:  b.forgotten.save,
		Log:         o.Log,
	}, r.take)
	if err != nil {
		return err
	}
	b.journal, b.messages.journal, b.forgotten.journal = j, j, j
	b.answers = r.answers
	if r.err != nil {
		return r.err
	}
	o.Seen.Expire(now.Unix(), math.MaxInt)
	o.Log.Info("recovered", "messages", r.messages, "remembered", o.Seen.Len(), "pending", j.Stats().Pending,
		"unregistered", len(r.unknown), "took", time.Since(now).Round(time.Millisecond))
	return nil
}
