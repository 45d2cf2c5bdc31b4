package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// maxKey is the longest idempotency key, in bytes.
const maxKey = 255

// route finds what a request is for. Whoever has no token learns nothing but whether the gateway is well.
func (s *Server) route(ctx *fasthttp.RequestCtx) error {
	path, method := string(ctx.Path()), string(ctx.Method())
	only := func(allowed ...string) error {
		for _, m := range allowed {
			if m == method {
				return nil
			}
		}
		return &Error{Status: 405, Reason: "method_not_allowed", Detail: method + " is not for this path", Allow: strings.Join(allowed, ", ")}
	}
	// Whoever is before this one may have found another end of the body, and so another request behind it.
	if times(ctx, "Transfer-Encoding") > 0 && times(ctx, "Content-Length") > 0 {
		ctx.SetConnectionClose()
		return &Error{Status: 400, Reason: "bad_request", Detail: "the request has both Transfer-Encoding and Content-Length; send one of them"}
	}
	trusted := s.authorized(ctx)
	if !trusted {
		ctx.SetConnectionClose() // the connections are for those who have the token
	}
	if path == "/healthz" {
		if err := only("GET", "HEAD"); err != nil {
			return err
		}
		return s.health(ctx)
	}
	if !trusted {
		return unauthorized
	}
	if path == "/metrics" {
		if err := only("GET", "HEAD"); err != nil {
			return err
		}
		return s.metrics(ctx)
	}
	// Of the path as it was sent: what is escaped in it is part of no id.
	path = string(ctx.Request.URI().PathOriginal())
	if path == "/v1/devices" {
		if err := only("GET", "HEAD"); err != nil {
			return err
		}
		return s.devices(ctx)
	}
	if rest, ok := strings.CutPrefix(path, "/v1/devices/"); ok {
		if rest != "" && !strings.ContainsAny(rest, "/%") {
			if err := only("GET", "HEAD"); err != nil {
				return err
			}
			return s.device(ctx, rest)
		}
		if device, ok := strings.CutSuffix(rest, "/commands"); ok && device != "" && !strings.ContainsAny(device, "/%") {
			if err := only("POST"); err != nil {
				return err
			}
			return s.send(ctx, device)
		}
	}
	if id, ok := strings.CutPrefix(path, "/v1/commands/"); ok && id != "" && !strings.ContainsAny(id, "/%") {
		if err := only("GET", "HEAD"); err != nil {
			return err
		}
		return s.command(ctx, id)
	}
	return notFound
}

func (s *Server) send(ctx *fasthttp.RequestCtx, device string) error {
	if kind, _, err := mime.ParseMediaType(string(ctx.Request.Header.ContentType())); err != nil || kind != "application/json" {
		return &Error{Status: 415, Reason: "unsupported_media_type", Detail: "the body must be JSON, and the header Content-Type: application/json say so"}
	}
	if len(ctx.Request.Header.Peek("Content-Encoding")) > 0 {
		return &Error{Status: 415, Reason: "unsupported_media_type", Detail: "the body must come without Content-Encoding"}
	}
	key := string(ctx.Request.Header.Peek("Idempotency-Key"))
	if times(ctx, "Idempotency-Key") > 1 || len(key) > maxKey || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
		return &Error{Status: 400, Reason: "bad_idempotency_key", Detail: fmt.Sprintf("Idempotency-Key must be there once, and be at most %d characters of printable ASCII", maxKey)}
	}
	ttl, err := duration(ctx, "ttl", DefaultTTL, s.options.MinTTL, s.options.MaxTTL)
	if err != nil {
		return err
	}
	wait, err := duration(ctx, "wait", 0, 0, MaxWait)
	if err != nil {
		return err
	}
	body := bytes.Clone(bytes.Trim(ctx.PostBody(), " \t\r\n"))
	c, err := s.service.Send(s.ctx, NewCommand{Device: device, Client: ctx.RemoteAddr().String(), Key: key, Body: body, TTL: ttl})
	if err != nil {
		return err
	}
	if wait > 0 && !c.Final {
		waiting, cancel := context.WithTimeout(s.ctx, wait)
		defer cancel()
		if c, err = s.service.Command(waiting, c.ID, true); err != nil {
			return err
		}
	}
	ctx.Response.Header.Set("Location", "/v1/commands/"+c.ID)
	if !c.Final {
		ctx.SetStatusCode(202)
	}
	return write(ctx, c)
}

func (s *Server) command(ctx *fasthttp.RequestCtx, id string) error {
	wait, err := duration(ctx, "wait", 0, 0, MaxWait)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(s.ctx, wait)
	defer cancel()
	c, err := s.service.Command(waiting, id, wait > 0)
	if err != nil {
		return err
	}
	return write(ctx, c)
}

func (s *Server) device(ctx *fasthttp.RequestCtx, id string) error {
	d, err := s.service.Device(s.ctx, id)
	if err != nil {
		return err
	}
	return writeJSON(ctx, shown(&d, time.Now()))
}

// defaultDevices is how many devices are listed without ?limit.
const defaultDevices = 10

func (s *Server) devices(ctx *fasthttp.RequestCtx) error {
	query := ctx.QueryArgs()
	if string(query.Peek("order")) != "slowest" {
		return &Error{Status: 400, Reason: "bad_order", Detail: "order must be slowest; to list all devices is for bouncerctl device list"}
	}
	limit := defaultDevices
	if query.Has("limit") {
		var err error
		if limit, err = query.GetUint("limit"); err != nil || limit < 1 || limit > MaxDevices {
			return &Error{Status: 400, Reason: "bad_limit", Detail: fmt.Sprintf("limit must be a number from 1 to %d", MaxDevices)}
		}
	}
	slowest, err := s.service.Slowest(s.ctx, limit)
	if err != nil {
		return err
	}
	list := struct {
		Devices []deviceJSON `json:"devices"`
	}{make([]deviceJSON, len(slowest))}
	now := time.Now()
	for i := range slowest {
		list.Devices[i] = shown(&slowest[i], now)
	}
	return writeJSON(ctx, list)
}

type deviceJSON struct {
	ID            string            `json:"device_id"`
	Registered    bool              `json:"registered"`
	Disabled      bool              `json:"disabled"`
	Since         *time.Time        `json:"since"`
	LastAccepted  *time.Time        `json:"last_accepted"`
	Accepted      uint64            `json:"accepted"`
	Redelivered   uint64            `json:"redelivered"`
	Refused       map[string]uint64 `json:"refused"`
	Pending       int               `json:"pending"`
	OldestSince   *time.Time        `json:"oldest_pending"`
	OldestSeconds *float64          `json:"oldest_pending_seconds"`
	Failures      int               `json:"failed_requests"`
	Suspended     bool              `json:"suspended"`
}

func shown(d *Device, now time.Time) deviceJSON {
	j := deviceJSON{d.ID, d.Registered, d.Disabled, at(d.Since), at(d.LastAccepted), d.Accepted, d.Redelivered, d.Refused,
		d.Pending, at(d.OldestSince), nil, d.Failures, d.Suspended}
	if !d.OldestSince.IsZero() {
		age := max(0, now.Sub(d.OldestSince)).Truncate(time.Millisecond).Seconds()
		j.OldestSeconds = &age
	}
	return j
}

// at is a time as it is shown; nil for zero.
func at(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Millisecond)
	return &t
}

func writeJSON(ctx *fasthttp.RequestCtx, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx.SetContentType("application/json")
	ctx.SetBody(append(body, '\n'))
	return nil
}

// duration reads a parameter of the query.
func duration(ctx *fasthttp.RequestCtx, name string, byDefault, least, most time.Duration) (time.Duration, error) {
	text := string(ctx.QueryArgs().Peek(name))
	if text == "" && !ctx.QueryArgs().Has(name) {
		return byDefault, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most {
		return 0, &Error{Status: 400, Reason: "bad_" + name, Detail: fmt.Sprintf("%s must be a duration from %v to %v, such as 30s", name, least, most)}
	}
	return d, nil
}

func write(ctx *fasthttp.RequestCtx, c Command) error {
	return writeJSON(ctx, struct {
		ID            string          `json:"id"`
		URL           string          `json:"url"`
		Device        string          `json:"device_id"`
		State         string          `json:"state"`
		Created       *time.Time      `json:"created"`
		Expires       *time.Time      `json:"expires"`
		Sent          *time.Time      `json:"sent"`
		Finished      *time.Time      `json:"finished"`
		Command       json.RawMessage `json:"command"`
		Result        json.RawMessage `json:"result,omitempty"`
		ResultDropped bool            `json:"result_dropped,omitempty"`
		Repeated      bool            `json:"repeated,omitempty"`
	}{c.ID, "/v1/commands/" + c.ID, c.Device, c.State, at(c.Created), at(c.Expires), at(c.SentAt), at(c.FinishedAt), c.Body, c.Result, c.ResultDropped, c.Seen})
}

// health says whether the gateway is well; what is wrong with it only who has the token is told.
func (s *Server) health(ctx *fasthttp.RequestCtx) error {
	wrong := s.service.Health()
	if len(wrong) == 0 {
		ctx.SetContentType("application/json")
		ctx.SetBodyString("{\"status\":\"ok\"}\n")
		return nil
	}
	e := &Error{Status: 503, Reason: "unhealthy", Detail: "the gateway does not work as it should; whoever has the token is told why"}
	if s.authorized(ctx) {
		e.Detail = strings.Join(wrong, "; ")
	}
	return e
}

func (s *Server) metrics(ctx *fasthttp.RequestCtx) error {
	var out bytes.Buffer
	kind, err := s.service.Metrics(&out)
	if err != nil {
		return err
	}
	ctx.SetContentType(kind)
	ctx.SetBody(out.Bytes())
	return nil
}
