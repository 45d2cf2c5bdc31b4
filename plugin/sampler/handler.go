package sampler

import (
	"context"
	"log/slog"
	"time"
)

// Who has provoked a line is in the first of its attributes with one of these names. Every line that a client can provoke
// has one.
const (
	Device  = "device"  // a device id
	Client  = "client"  // a client id
	Topic   = "topic"   // what a client has published or subscribed to
	Address = "address" // of an HTTP client
)

// WherePanicked names the part of the program in which a panic was caught: a client may bring one about.
const WherePanicked = "where"

// Handler returns a handler that hands on to next the lines without such an attribute, and of the others as many as s
// allows.
func (s *Sampler) Handler(next slog.Handler) slog.Handler { return &handler{Handler: next, sampler: s} }

type handler struct {
	slog.Handler
	sampler *Sampler
	client  string // from With
	grouped bool
}

func provoker(a slog.Attr) (string, bool) {
	switch a.Key {
	case Device, Client, Topic, Address, WherePanicked:
		return a.Value.String(), true
	}
	return "", false
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	client, provoked := h.client, h.client != ""
	if !provoked && !h.grouped {
		r.Attrs(func(a slog.Attr) bool {
			client, provoked = provoker(a)
			return !provoked
		})
	}
	if provoked {
		now := r.Time
		if now.IsZero() {
			now = time.Now()
		}
		if !h.sampler.Allow(now, []byte(client), r.Message, r.Level >= slog.LevelError) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.Handler = h.Handler.WithAttrs(attrs)
	if !h.grouped && next.client == "" {
		for _, a := range attrs {
			if client, ok := provoker(a); ok {
				next.client = client
				break
			}
		}
	}
	return &next
}

func (h *handler) WithGroup(name string) slog.Handler {
	next := *h
	next.Handler, next.grouped = h.Handler.WithGroup(name), true
	return &next
}
