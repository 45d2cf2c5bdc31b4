package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/metrics"
)

// tickWithin is how long the broker's thread may take to come round, which it does ten times a second, before the gateway
// counts as unwell.
const tickWithin = 5 * time.Second

// serve starts the HTTP listener.
func (g *Gateway) serve(c *config.Config) error {
	server, err := httpd.Start(httpd.Options{
		Listen:  c.HTTP.Listen,
		Token:   c.HTTP.Token,
		TLS:     c.HTTP.TLS,
		MinTTL:  command.MinTTL,
		MaxTTL:  command.MaxTTL,
		Version: Version,
		Log:     g.log,
		Refused: auditRefusals(g.audit),
	}, service{g, g.collectors()})
	if err != nil {
		return fmt.Errorf("%s: %w", c.Where("http.listen"), err)
	}
	g.server.Store(server)
	warnOfToken(g.log, c)
	g.log.Info("serving HTTP", "listen", server.Addr().String(), "tls", c.HTTP.TLS != nil)
	return nil
}

var errNoSuchDevice = &httpd.Error{Status: 404, Reason: "no_such_device", Detail: "no device with this id is registered"}

// service is httpd.Service. Its methods are called by many goroutines.
type service struct {
	g       *Gateway
	metrics *metrics.Set // what /metrics shows
}

func (s service) Send(ctx context.Context, n httpd.NewCommand) (httpd.Command, error) {
	c, err := s.send(ctx, n)
	if err != nil {
		refused := audit.Record{Event: audit.Command, Device: n.Device, Change: "refused", Actor: n.Client, Reason: "unavailable"}
		if e, ok := errors.AsType[*httpd.Error](err); ok {
			refused.Reason = e.Reason
		}
		s.g.audit.Add(refused)
	}
	return c, err
}

func (s service) send(ctx context.Context, n httpd.NewCommand) (httpd.Command, error) {
	c, created, err := s.g.commands.Create(ctx, command.Request{Device: n.Device, Key: n.Key, Body: n.Body, TTL: n.TTL})
	switch {
	case errors.Is(err, downlink.ErrNoSuchDevice):
		return httpd.Command{}, errNoSuchDevice
	case errors.Is(err, downlink.ErrDisabled):
		return httpd.Command{}, &httpd.Error{Status: 409, Reason: "device_disabled", Detail: err.Error() + "; enable it with bouncerctl device enable"}
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
		s.g.audit.Add(audit.Record{Event: audit.Command, Device: c.Device, MessageID: c.ID, Change: "created", Actor: n.Client})
		s.g.commands.Send(c)
	}
	shown := show(c)
	shown.Seen = !created
	return shown, nil
}

func (s service) Command(ctx context.Context, id string, wait bool) (c httpd.Command, err error) {
	var found command.Command
	if !command.ValidID(id) {
		err = command.ErrNotFound
	} else if wait {
		found, err = s.g.commands.Wait(ctx, id)
	} else {
		found, err = s.g.commands.Get(context.WithoutCancel(ctx), id)
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

// Health looks at everything that a publish or a command needs here. That the backend is away is no ill of the gateway.
func (s service) Health() (wrong []string) {
	g := s.g
	last := time.Unix(0, g.figures.lastTick.Load())
	if g.figures.lastTick.Load() == 0 {
		last = g.started
	}
	if late := time.Since(last); late > tickWithin {
		wrong = append(wrong, fmt.Sprintf("broker event loop has not run for %d s", int(late.Seconds())))
	}
	if current, err := g.registry.Health(); err != nil {
		wrong = append(wrong, fmt.Sprintf("the device database cannot be read: %v; the state of %s is in force", err, current.UTC().Format(time.RFC3339)))
	}
	wrong = append(wrong, g.writable.Wrong()...)
	if why := g.ReloadError(); why != "" {
		wrong = append(wrong, "bouncer.toml was not reloaded: "+why)
	}
	for _, check := range g.checks {
		if err := check(); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	return wrong
}

func (s service) Metrics(w io.Writer) (contentType string, err error) {
	return s.metrics.Write(w)
}
