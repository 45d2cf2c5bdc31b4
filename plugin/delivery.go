package plugin

import (
	"errors"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/outbox"
)

// newSink makes the sink that sends messages to the backend.
func newSink(c *config.Config) (*webhook.Sink, error) {
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
func openOutbox(s *starter) (*outbox.Outbox, error) {
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
			Sink:        s.sink,
			Concurrency: c.Backend.Concurrency,
			MaxAge:      c.Backend.MaxAge,
			Batch:       c.Backend.Batch,
			Linger:      c.Backend.Linger,
			Unordered:   c.Backend.Order == config.OrderNone,
		},
		BackendURL:    c.Backend.URL,
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
