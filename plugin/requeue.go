package plugin

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/standing"
)

const (
	housekeepingInterval = time.Second
	maxRequeued          = 256                    // letters at a time
	requeuingPerTick     = 500 * time.Microsecond // but for the first letter; with sync = "always" each takes an fsync
	fullInterval         = time.Minute
)

// requeued are letters that an operator has requeued, on their way through the broker's thread into the journal.
type requeued struct {
	letters []deadletter.Letter
	next    int           // letters[:next] are in the journal; the broker's thread's
	done    chan struct{} // closed when all are
}

// housekeeper does once a second what is nobody's hurry.
type housekeeper struct {
	g       *Gateway
	cancel  context.CancelFunc
	ended   chan struct{}
	fullAt  time.Time           // when the log last said who fills the journal
	refused uint64              // by the journal, until then
	handed  *requeued           // to the broker's thread; nil: none
	taken   []deadletter.Letter // in the journal, and not removed yet

	stateDir, backendURL string
	standing             uint64 // the version of the backend's standing that is written down
}

func (g *Gateway) startHousekeeping() {
	ctx, cancel := context.WithCancel(context.Background())
	h := &housekeeper{
		g: g, cancel: cancel, ended: make(chan struct{}),
		stateDir: g.config.StateDir, backendURL: g.config.Backend.URL,
	}
	g.housekeeper = h
	go h.run(ctx)
}

// stop ends the housekeeping; the broker's thread calls it, and knows then which letters are in the journal.
func (h *housekeeper) stop() {
	h.cancel()
	select {
	case <-h.ended:
	case <-time.After(time.Second): // the database does not answer
		return
	}
	if r := h.g.requeued.Swap(nil); r != nil {
		h.taken = append(h.taken, r.letters[:r.next]...)
	}
	h.keepStanding()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	h.remove(ctx)
}

func (h *housekeeper) run(ctx context.Context) {
	defer close(h.ended)
	ticker := time.NewTicker(housekeepingInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			h.round(ctx)
		}
	}
}

func (h *housekeeper) round(ctx context.Context) {
	defer func() {
		if v := recover(); v != nil {
			h.g.log.Error("internal error, caught; please report it", "where", "housekeeping", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	h.reportFull(time.Now())
	h.keepStanding()
	h.g.letterRoom.round(ctx, time.Now())
	h.g.suspensions.Follow(h.g.forwarder.Resume)
	for ctx.Err() == nil && h.requeue(ctx) {
	}
}

// keepStanding writes down what is known of the backend's refusals, where it has changed.
func (h *housekeeper) keepStanding() {
	s, version := h.g.forwarder.Standing()
	if version == h.standing {
		return
	}
	if err := standing.Save(h.stateDir, h.backendURL, standing.State(s)); err != nil {
		h.g.complaints.Do(func() {
			h.g.log.Warn("what is known of the backend cannot be written down, and is found out anew after a restart", "error", err)
		})
		return
	}
	h.standing = version
}

// requeue takes back what an operator has requeued, and reports whether there may be more.
func (h *housekeeper) requeue(ctx context.Context) bool {
	if !h.remove(ctx) {
		return false // they would be taken once more
	}
	if h.handed == nil {
		letters, err := h.g.store.letters.Requeued(ctx, maxRequeued)
		if err != nil && ctx.Err() == nil {
			h.g.complaints.Do(func() { h.g.log.Warn("requeued dead letters cannot be read", "error", err) })
		}
		if err != nil || len(letters) == 0 {
			return false
		}
		h.handed = &requeued{letters: letters, done: make(chan struct{})}
		h.g.requeued.Store(h.handed)
		h.g.waker.Wake()
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(housekeepingInterval): // the journal is full, or the broker never ticks
		return false
	case <-h.handed.done:
	}
	h.taken, h.handed = h.handed.letters, nil
	h.g.log.Info("dead letters requeued", "count", len(h.taken))
	return h.remove(ctx)
}

// remove removes the letters that are in the journal. Until it has succeeded no others are taken.
func (h *housekeeper) remove(ctx context.Context) bool {
	err := h.g.store.letters.Remove(context.WithoutCancel(ctx), h.taken...)
	if err != nil {
		h.g.complaints.Do(func() {
			h.g.log.Warn("requeued dead letters cannot be removed, so no others are requeued; after a restart they are delivered once more", "error", err)
		})
		return false
	}
	h.taken = nil
	return true
}

// reportFull says who fills the journal, while it is full.
func (h *housekeeper) reportFull(now time.Time) {
	s := h.g.journal.Stats()
	refused := s.Refused - s.OverShare - h.refused
	if refused == 0 || now.Sub(h.fullAt) < fullInterval {
		return
	}
	h.fullAt, h.refused = now, s.Refused-s.OverShare
	h.g.log.Error("publishes were refused as overloaded, the journal had no room for them", "count", refused, "bytes", s.Bytes,
		"max_bytes", s.MaxBytes, "pending", s.Pending)
	for _, d := range h.g.journal.Largest(3) {
		h.g.log.Warn("has most in the journal", "device", d.Device, "bytes", d.Bytes)
	}
	for _, b := range h.g.forwarder.Longest(3) {
		h.g.log.Warn("waiting for the backend", "device", b.Device, "messages", b.Messages, "bytes", b.Bytes)
	}
}

// takeRequeued puts some of the letters that an operator has requeued into the journal. Broker's thread only.
func (g *Gateway) takeRequeued() {
	r := g.requeued.Load()
	if r == nil {
		return
	}
	began := time.Now()
	for first := r.next; r.next < len(r.letters); r.next++ {
		l := &r.letters[r.next]
		if r.next > first && time.Since(began) > requeuingPerTick {
			return
		}
		id, err := uuid.Parse(l.MessageID)
		if err != nil {
			g.log.Error("a dead letter cannot be requeued: it has no message id", "letter", l.ID)
			continue
		}
		device := l.Device
		if d := g.registry.Lookup([]byte(device)); d != nil {
			device = d.ID
		}
		// A share does not hold back what makes room among the dead letters, nor the other devices' letters behind it.
		if err := g.forwarder.Admit(device); err != nil && !errors.Is(err, forward.ErrShare) {
			return // there will be room
		}
		a := journal.Accepted{
			Device: device, MessageID: id, Timestamp: l.Timestamp, Topic: []byte(l.Topic), Payload: l.Payload, Traceparent: l.Traceparent,
		}
		a.Requeue(l.AcceptedAt, time.Now())
		pos, err := g.journal.Append(&a)
		if errors.Is(err, journal.ErrTooLarge) {
			g.complaints.Do(func() {
				g.log.Error("a dead letter cannot be requeued, nor those behind it: it is larger than the journal takes; "+
					"raise [journal] max_bytes, or drop it with bouncerctl dead drop", "letter", l.ID, "device", l.Device, "bytes", len(l.Payload))
			})
		}
		if err != nil {
			return
		}
		g.forwarder.Enqueue(device, uint64(pos), a.Size())
	}
	g.requeued.Store(nil)
	close(r.done)
}
