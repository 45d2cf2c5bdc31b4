package downlink

import (
	"bytes"
	"errors"
	"log/slog"
	"time"

	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/journal"
)

var errAnswers = errors.New("too many answers to commands wait to be stored")

// An Answer is a device's to one of its commands. It is acknowledged to the device, and is in the journal until it is
// stored.
type Answer struct {
	Position journal.Position
	Device   string
	Payload  []byte // of the envelope
	At       time.Time
}

// Admit returns an error where there is no room for one more answer of size bytes just now. Only Append takes room. Broker's
// thread.
func (cs *Commands) Admit(_ string, size int) error {
	if !cs.store.HasRoom(size) {
		return errAnswers
	}
	return nil
}

// Append appends a device's answer to the journal, and hands it to the store, if Admit has found room for it. The error is
// the journal's. Broker's thread.
func (cs *Commands) Append(a *journal.Accepted) error {
	pos, err := cs.options.Journal.Append(a)
	if err != nil {
		return err
	}
	// From here on the answer is accepted, whatever happens: the next start finds it in the journal.
	defer crash.Log(cs.log, "answer to a command", "device", a.Device)
	cs.keep(Answer{pos, a.Device, bytes.Clone(a.Payload), a.AcceptedAt})
	return nil
}

// Restore brings answers from the journal into the store.
func (cs *Commands) Restore(answers []Answer) {
	for _, a := range answers {
		cs.keep(a)
	}
}

// keep hands an answer to the store, which tells the journal when it has it. It waits for nothing.
func (cs *Commands) keep(a Answer) {
	stored := func() { cs.options.Journal.Done(a.Position, journal.Delivered) }
	if cs.store.Answered(a.Device, a.Payload, a.At, stored) != nil {
		cs.log.Error("the answer to a command waits in the journal for the next start", "device", a.Device)
	}
}

// DropAnswers ends what was to be done with answers in the journal, for a gateway without Commands, where no client can ask for
// them any more.
func DropAnswers(answers []Answer, j Journal, log *slog.Logger) {
	for _, a := range answers {
		j.Done(a.Position, journal.Delivered)
	}
	if len(answers) > 0 {
		log.Warn("answers to commands were dropped, because [http] listen is no longer set", "answers", len(answers))
	}
}
