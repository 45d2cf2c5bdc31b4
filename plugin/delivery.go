package plugin

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/fleet"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/jetstream"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/outbox"
)

// openSink makes the sink, and what it needs: with [fleet] a stream of NATS, else the HTTP backend.
func openSink(s *starter) (forward.Sink, error) {
	c := s.config
	if len(c.Fleet.Servers) > 0 {
		s.fleet = newFleet(c, s.log)
		s.closers.do("the connection to NATS", s.fleet.Close) // after the outbox
		return jetstream.New(s.fleet), nil
	}
	var err error
	s.sink, err = newWebhook(c)
	return s.sink, err
}

// newFleet makes the connection to NATS, which is not started yet.
func newFleet(c *config.Config, log *slog.Logger) *fleet.Fleet {
	return fleet.New(fleet.Options{
		Name:        c.Fleet.Name,
		Servers:     c.Fleet.Servers,
		TLS:         c.Fleet.TLS,
		Credentials: c.Fleet.Credentials,
		Prefix:      c.Fleet.Prefix,
		Partitions:  c.Fleet.Partitions,
		Replicas:    c.Fleet.Replicas,
		Dedup:       c.Fleet.Dedup,
		MaxBytes:    c.Fleet.MaxBytes,
		MaxMessage:  c.Publish.MaxBytes,
		Timeout:     c.Backend.Timeout,
		StateDir:    c.StateDir,
		Log:         log,
	})
}

// destination names where messages go, for the log and for what is kept of the backend.
func destination(c *config.Config) string {
	if len(c.Fleet.Servers) > 0 {
		return "nats:" + fleet.StreamName(c.Fleet.Prefix)
	}
	return c.Backend.URL
}

// maxAge is after which time a message is given up; 0: never. A stream takes every message in the end.
func maxAge(c *config.Config) time.Duration {
	if len(c.Fleet.Servers) > 0 {
		return 0
	}
	return c.Backend.MaxAge
}

// newWebhook makes the sink that sends messages to the HTTP backend.
func newWebhook(c *config.Config) (*webhook.Sink, error) {
	return webhook.New(webhook.Config{
		URL:           c.Backend.URL,
		Timeout:       c.Backend.Timeout,
		Concurrency:   c.Backend.Concurrency,
		Batch:         c.Backend.Batch,
		FatalStatuses: c.Backend.FatalStatuses,
		BearerToken:   c.Backend.BearerToken,
		SigningSecret: c.Backend.SigningSecret,
		TLS:           c.Backend.TLS,
		Version:       Version,
	})
}

// openOutbox opens the outbox, which delivers through the sink.
func openOutbox(s *starter, sink forward.Sink) (*outbox.Outbox, error) {
	c := s.config
	answers := gate.NewTopic(answerFilter(c)) // the journal may have answers although there is no listener any more
	box, err := outbox.Open(outbox.Options{
		StateDir: c.StateDir,
		Journal: outbox.Journal{
			MaxBytes:    c.Journal.MaxBytes,
			DeviceShare: c.Journal.DeviceShare,
			MaxMessage:  c.Publish.MaxBytes,
			Sync:        c.Journal.Sync,
		},
		Letters: deadletter.Limits{
			MaxBytes:    c.DeadLetters.MaxBytes,
			DeviceShare: c.DeadLetters.DeviceShare,
			DropOldest:  c.DeadLetters.AtLimit == config.AtLimitDropOldest,
		},
		Forward: forward.Config{
			Sink:        sink,
			Concurrency: c.Backend.Concurrency,
			MaxAge:      maxAge(c),
			Batch:       c.Backend.Batch,
			Linger:      c.Backend.Linger,
			Unordered:   c.Backend.Order == config.OrderNone,
		},
		BackendURL:    destination(c),
		FatalStatuses: c.Backend.FatalStatuses,
		Respond:       s.respond,
		Registry:      s.registry,
		Seen:          s.seen,
		Tolerance:     c.Publish.Tolerance,
		Entry:         gate.RecoveredEntry,
		IsAnswer: func(topic []byte) bool {
			_, is := answers.Device(topic)
			return is
		},
		Wake: s.waker.Wake,
		Log:  s.log,
	})
	if _, is := errors.AsType[*outbox.StateError](err); is {
		err = stateError(c, err)
	}
	return box, err
}

// startFleet begins to connect to NATS. It is after the outbox, whose lock on the state directory it needs.
func (s *starter) startFleet() error {
	if s.fleet == nil {
		return nil
	}
	s.checks = append(s.checks, s.fleet.Health)
	if err := s.fleet.Start(); err != nil {
		return fmt.Errorf("%s: %w", s.config.Where("fleet.servers"), err)
	}
	return nil
}
