package plugin

import (
	"errors"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/outbox"
)

// startDelivery makes the sink for the backend, and opens the outbox.
func (g *Gateway) startDelivery(c *config.Config) (err error) {
	g.sink, err = webhook.New(webhook.Config{
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
	if err != nil {
		return err
	}
	results := resultTopic(c)
	g.outbox, err = outbox.Open(outbox.Options{
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
			Sink:        g.sink,
			Concurrency: c.Backend.Concurrency,
			MaxAge:      c.Backend.MaxAge,
			Batch:       c.Backend.Batch,
			Linger:      c.Backend.Linger,
			Unordered:   c.Backend.Order == config.OrderNone,
		},
		BackendURL:    c.Backend.URL,
		FatalStatuses: c.Backend.FatalStatuses,
		Answered:      g.answered,
		Registry:      g.registry,
		Seen:          g.seen,
		Tolerance:     time.Duration(g.decision.tolerance) * time.Second,
		Entry:         recoveredEntry,
		IsAnswer: func(topic []byte) bool {
			_, is := results.Device(topic)
			return is
		},
		Wake: g.waker.Wake,
		Log:  g.log,
	})
	if _, is := errors.AsType[*outbox.StateError](err); is {
		return stateError(c, err)
	}
	if err == nil {
		g.checks = append(g.checks, g.outbox.Checks()...)
	}
	return err
}

// Stats returns the state of delivery. Safe for concurrent use after Start.
func (g *Gateway) Stats() outbox.Stats { return g.outbox.Stats() }
