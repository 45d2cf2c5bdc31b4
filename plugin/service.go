package plugin

import (
	"context"
	"errors"
	"io"
	"time"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/metrics"
	"mosquitto-bouncer/plugin/outbox"
	"mosquitto-bouncer/plugin/registry"
)

var errNoSuchDevice = &httpd.Error{Status: 404, Reason: "no_such_device", Detail: "no device with this id is registered"}

// service is httpd.Service. Its methods are called by many goroutines.
type service struct {
	gate     *gate.Gate
	registry *registry.Registry
	outbox   *outbox.Outbox
	commands *downlink.Commands
	audit    *audit.Log // nil: none
	health   *health
	metrics  *metrics.Set // what /metrics shows
	slowest  slowest
}

func (s *service) Send(ctx context.Context, n httpd.NewCommand) (httpd.Command, error) {
	c, err := s.send(ctx, n)
	if err != nil {
		refused := audit.Record{Event: audit.Command, Device: n.Device, Change: "refused", Actor: n.Client, Reason: "unavailable"}
		if e, ok := errors.AsType[*httpd.Error](err); ok {
			refused.Reason = e.Reason
		}
		s.audit.Add(refused)
	}
	return c, err
}

func (s *service) send(ctx context.Context, n httpd.NewCommand) (httpd.Command, error) {
	c, created, err := s.commands.Create(ctx, command.Request{Device: n.Device, Key: n.Key, Body: n.Body, TTL: n.TTL})
	switch {
	case errors.Is(err, downlink.ErrNoSuchDevice):
		return httpd.Command{}, errNoSuchDevice
	case errors.Is(err, downlink.ErrDisabled):
		return httpd.Command{}, &httpd.Error{Status: 409, Reason: "device_disabled", Detail: err.Error() + "; enable it with bouncerctl device enable"}
	case isNoCommandKey(err):
		return httpd.Command{}, &httpd.Error{Status: 409, Reason: "no_command_key", Detail: err.Error() + "; make one with bouncerctl command-key make, or with command-key rotate --algorithm where there is a file of keys"}
	case errors.Is(err, downlink.ErrBody):
		return httpd.Command{}, &httpd.Error{Status: 400, Reason: "bad_json", Detail: err.Error()}
	case errors.Is(err, command.ErrKeyReused):
		return httpd.Command{}, &httpd.Error{Status: 422, Reason: "idempotency_key_reused", Detail: err.Error() + ", with another body"}
	case errors.Is(err, command.ErrDeviceFull):
		return httpd.Command{}, &httpd.Error{Status: 429, Reason: "device_busy", Detail: err.Error() + "; wait until it has answered, or their time is up", RetryAfter: time.Second}
	case errors.Is(err, command.ErrFull):
		return httpd.Command{}, &httpd.Error{Status: 503, Reason: "overloaded", Detail: err.Error(), RetryAfter: time.Second}
	case err != nil:
		return httpd.Command{}, err
	}
	if created {
		s.audit.Add(audit.Record{Event: audit.Command, Device: c.Device, MessageID: c.ID, Change: "created", Actor: n.Client})
		s.commands.Send(c)
	}
	shown := show(c)
	shown.Seen = !created
	return shown, nil
}

func isNoCommandKey(err error) bool {
	_, is := errors.AsType[downlink.NoCommandKeyError](err)
	return is
}

func (s *service) Command(ctx context.Context, id string, wait bool) (c httpd.Command, err error) {
	var found command.Command
	if !command.ValidID(id) {
		err = command.ErrNotFound
	} else if wait {
		found, err = s.commands.Wait(ctx, id)
	} else {
		found, err = s.commands.Get(context.WithoutCancel(ctx), id)
	}
	if errors.Is(err, command.ErrNotFound) {
		return c, &httpd.Error{Status: 404, Reason: "no_such_command", Detail: "no command with this id is known; finished ones are kept for a week"}
	}
	return show(found), err
}

func show(c command.Command) httpd.Command {
	return httpd.Command{
		ID: c.ID, Device: c.Device, State: string(c.State), Final: c.State.Final(),
		Created: c.Created, Expires: c.Expires, SentAt: c.SentAt, FinishedAt: c.FinishedAt,
		Body: c.Body, Result: c.Result, ResultDropped: c.ResultDropped,
	}
}

// Health is httpd.Service's.
func (s *service) Health() []string { return s.health.wrong() }

// Metrics is httpd.Service's.
func (s *service) Metrics(w io.Writer) (contentType string, err error) {
	return s.metrics.Write(w)
}
