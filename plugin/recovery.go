package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"mosquitto-bouncer/plugin/gate"
	"time"

	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
)

// forgottenState is the name under which the journal keeps the timestamps of messages whose ids are forgotten, once the
// messages themselves are dropped.
const forgottenState = "forgotten"

// keepBeyond is how much longer than the tolerance the journal keeps a message: ids are forgotten some seconds late.
const keepBeyond = 5 * time.Second

// A recovery rebuilds from the journal, in one pass, what the process before knew: which ids were accepted, and what the
// backend has not got yet.
type recovery struct {
	registry  *registry.Registry
	seen      *replay.Set
	forwarder *forward.Forwarder
	now       int64 // seconds since 1970
	tolerance int64
	results   gate.Topic // of devices' answers to commands
	answers   []downlink.Answer

	device   string // of the message before, a string that lives anyway
	serial   uint32
	unknown  map[string]string // devices that are not registered any more, by themselves
	messages int
	err      error
}

// restoreForgotten has the replay memory refuse what it refused before, as far as the journal cannot tell.
func restoreForgotten(dir string, seen *replay.Set, now, tolerance int64, log *slog.Logger) error {
	text, err := journal.LoadState(dir, forgottenState)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var spans []replay.Span
	if err == nil {
		if err = json.Unmarshal(text, &spans); err != nil {
			err = fmt.Errorf("%w: %w", journal.ErrDamaged, err)
		}
	}
	if errors.Is(err, journal.ErrDamaged) {
		// What the clock refuses now it must refuse for good.
		spans = []replay.Span{{First: 0, Last: now - tolerance - 1}}
		log.Error("what the journal noted of messages that it dropped is damaged; messages from before the start's "+
			"tolerance are refused even if the clock is set back", "error", err)
		err = nil
	}
	seen.Restore(spans)
	return err
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
	if _, is := r.results.Device(a.Topic); is {
		r.answers = append(r.answers, downlink.Answer{Position: pos, Device: r.device, Payload: bytes.Clone(a.Payload), At: a.AcceptedAt})
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
	if r.seen.Insert(r.serial, a.MessageID, a.Timestamp, recoveredEntry(a)) == replay.Full {
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
func (g *Gateway) openJournal(o journal.Options, results gate.Topic) error {
	now := time.Now()
	tolerance := g.decision.tolerance
	if err := restoreForgotten(o.Dir, g.seen, now.Unix(), tolerance, g.log); err != nil {
		return err
	}
	r := recovery{
		registry: g.registry, seen: g.seen, forwarder: g.forwarder, now: now.Unix(), tolerance: tolerance,
		results: results, unknown: make(map[string]string),
	}
	o.Keep = time.Duration(tolerance)*time.Second + keepBeyond
	o.BeforeDrop = g.saveForgotten
	o.Log = g.log
	j, err := journal.Open(o, r.take)
	if err != nil {
		return err
	}
	g.journal, g.store.journal = j, j
	g.recoveredAnswers = r.answers
	if r.err != nil {
		return r.err
	}
	g.seen.Expire(now.Unix(), math.MaxInt)
	before := j.Stats()
	g.recovered = Accounts{Accepted: before.Accepted, Delivered: before.Delivered, Dead: before.Dead, Pending: before.Pending}
	g.log.Info("recovered", "messages", r.messages, "remembered", g.seen.Len(), "pending", before.Pending,
		"unregistered", len(r.unknown), "took", time.Since(now).Round(time.Millisecond))
	return nil
}

// forgotten is what the replay memory has forgotten, for another goroutine.
type forgotten struct {
	spans    []replay.Span
	earliest int64 // what is stamped before is forgotten
}

// noteForgotten publishes it, at most once a second.
func (g *Gateway) noteForgotten(now int64) {
	if now != g.forgottenAt {
		g.forgottenAt = now
		g.forgotten.Store(&forgotten{g.seen.Spans(), g.seen.Earliest()})
	}
}

// saveForgotten is journal.Options.BeforeDrop: of messages that are dropped, what is left is that their timestamps are
// refused.
func (g *Gateway) saveForgotten(newest int64) error {
	f := g.forgotten.Load()
	if f == nil || f.earliest <= newest {
		return journal.ErrNotYet
	}
	text, err := json.Marshal(f.spans)
	if err != nil {
		return err
	}
	return g.journal.SaveState(forgottenState, text)
}
