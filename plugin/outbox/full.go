package outbox

import (
	"log/slog"
	"time"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
)

const (
	fullInterval = time.Minute
	fullDevices  = 3 // that are named
)

// A fullReport says in the log which devices fill the journal, while it is full. The housekeeping calls it.
type fullReport struct {
	journal   *journal.Journal
	forwarder *forward.Forwarder
	log       *slog.Logger
	at        time.Time // of the last report
	refused   uint64    // by the journal, until then
}

func (r *fullReport) round(now time.Time) {
	s := r.journal.Stats()
	refused := s.Refused - s.OverShare - r.refused
	if refused == 0 || now.Sub(r.at) < fullInterval {
		return
	}
	r.at, r.refused = now, s.Refused-s.OverShare
	r.log.Error("publishes were refused as overloaded: the journal had no room for them", "count", refused, "bytes", s.Bytes,
		"max_bytes", s.MaxBytes, "pending", s.Pending)
	for _, d := range r.journal.Largest(fullDevices) {
		r.log.Warn("has most in the journal", "device", d.Device, "bytes", d.Bytes)
	}
	for _, b := range r.forwarder.Longest(fullDevices) {
		r.log.Warn("waiting for the backend", "device", b.Device, "messages", b.Messages, "bytes", b.Bytes)
	}
}
