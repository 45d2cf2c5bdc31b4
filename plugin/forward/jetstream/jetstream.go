// Package jetstream is the sink that hands messages to a stream of NATS JetStream, as CloudEvents in binary mode. The
// connection is package fleet's.
package jetstream

import (
	"context"
	"errors"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/cloudevent"
	"mosquitto-bouncer/plugin/fleet"
	"mosquitto-bouncer/plugin/forward"
)

// A Stream stores messages: a *fleet.Fleet.
type Stream interface {
	Publish(ctx context.Context, r *fleet.Record) (o fleet.Outcome, status int, err error)
}

// Sink is a forward.Sink.
type Sink struct{ stream Stream }

// New returns the sink.
func New(s Stream) *Sink { return &Sink{s} }

var errBatch = errors.New("fleet: a batch for a sink of single messages; please report it")

// Send is forward.Sink's. Only what no stream can take is refused. Everything else is Busy: the state of NATS is never a fault
// of a message.
func (s *Sink) Send(ctx context.Context, b *forward.Batch) forward.Result {
	if len(b.Messages) != 1 {
		return forward.Result{Err: errBatch}
	}
	begin := time.Now()
	r := record(&b.Messages[0])
	outcome, status, err := s.stream.Publish(ctx, &r)
	result := forward.Result{Meaning: forward.Busy, Status: status, Err: err, Latency: time.Since(begin)}
	switch outcome {
	case fleet.Stored:
		result.Meaning, result.Err = forward.Taken, nil
	case fleet.Impossible:
		result.Meaning, result.Excerpt = forward.Refused, err.Error()
	}
	return result
}

// record makes the headers of a message:
//
//	Nats-Msg-Id: sensor_001:550e8400-e29b-41d4-a716-446655440000
//	ce-specversion: 1.0
//	ce-type: mosquitto-bouncer.message.v1
//	ce-id: 550e8400-e29b-41d4-a716-446655440000
//	ce-source: /devices/sensor_001
//	ce-subject: device/sensor_001/data
//	ce-time: 2024-09-30T16:00:00Z
//	content-type: application/json
//	traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//
// They are the attributes that package webhook sends. Names of headers have upper and lower case in NATS. The id is the
// content of webhook's Idempotency-Key.
func record(m *forward.Message) fleet.Record {
	escaped := func(s string) []string { return []string{string(cloudevent.AppendEscaped(nil, s))} }
	h := map[string][]string{
		"ce-specversion": {cloudevent.Spec},
		"ce-type":        {cloudevent.Type},
		"ce-id":          escaped(strings.ToLower(m.MessageID)),
		"ce-source":      escaped(cloudevent.SourcePrefix + m.DeviceID),
		"ce-time":        {time.Unix(m.Timestamp, 0).UTC().Format(time.RFC3339)},
		"content-type":   {"application/json"},
	}
	if subject := escaped(m.Topic); subject[0] != "" && len(subject[0]) <= cloudevent.MaxSubject {
		h["ce-subject"] = subject
	}
	if cloudevent.ValidTraceparent(m.Traceparent) {
		h["traceparent"] = []string{m.Traceparent}
	}
	return fleet.Record{
		Device: m.DeviceID, ID: string(cloudevent.AppendKey(nil, m.DeviceID, m.MessageID)), AcceptedAt: m.AcceptedAt,
		Header: h, Payload: m.Payload,
	}
}
