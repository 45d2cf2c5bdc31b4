package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"slices"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/httpd/api"

	"github.com/valyala/fasthttp"
)

// maxKey is the longest idempotency key, in bytes.
const maxKey = 255

// A route is one path of docs/openapi.yaml.
type route struct {
	path       []string // its segments; anyID stands for the one that is an id
	methods    []string
	parameters []string // of the query
	open       bool     // served without the token
	serve      func(s *Server, r *request) error
}

const anyID = "{id}"

var reads = []string{"GET", "HEAD"}

// routes are all that the server serves.
var routes = []route{
	{path: []string{"healthz"}, methods: reads, open: true, serve: (*Server).health},
	{path: []string{"metrics"}, methods: reads, serve: (*Server).metrics},
	{path: []string{"v1", "devices"}, methods: reads, parameters: []string{"order", "limit"}, serve: (*Server).devices},
	{path: []string{"v1", "devices", anyID}, methods: reads, serve: (*Server).device},
	{path: []string{"v1", "devices", anyID, "commands"}, methods: []string{"POST"}, parameters: []string{"ttl", "wait"}, serve: (*Server).send},
	{path: []string{"v1", "commands", anyID}, methods: reads, parameters: []string{"wait"}, serve: (*Server).command},
}

// match returns the id in a path, and whether the path is the route's.
func (r *route) match(segments []string) (id string, ok bool) {
	if len(segments) != len(r.path) {
		return "", false
	}
	for i, want := range r.path {
		switch {
		case want == anyID && segments[i] != "":
			id = segments[i]
		case want != segments[i]:
			return "", false
		}
	}
	return id, true
}

func find(segments []string) (r *route, id string) {
	for i := range routes {
		if id, ok := routes[i].match(segments); ok {
			return &routes[i], id
		}
	}
	return nil, ""
}

// A request is one that a route serves.
type request struct {
	*fasthttp.RequestCtx
	id      string            // in the path; "": the route has none
	query   map[string]string // the parameters that are there, each of them known
	trusted bool              // it has the token
}

// route finds what a request is for. A client without the token learns nothing but whether the gateway is well.
func (s *Server) route(ctx *fasthttp.RequestCtx) error {
	if e := framing(&ctx.Request.Header); e != nil {
		ctx.SetConnectionClose()
		lingerAtClose(ctx.Conn())
		return e
	}
	if ctx.Request.Header.ContentLength() == chunked {
		ctx.SetConnectionClose()
	}
	at, err := parseTarget(ctx.Request.Header.RequestURI())
	if err != nil {
		ctx.SetConnectionClose()
		return &Error{Status: 400, Reason: "bad_request", Detail: err.Error()}
	}
	found, id := find(at.segments)
	r := request{RequestCtx: ctx, id: id}
	if r.trusted, err = s.admit(ctx, found != nil && found.open); err != nil {
		return err
	}
	if found == nil {
		return notFound
	}
	if method := string(ctx.Method()); !slices.Contains(found.methods, method) {
		return &Error{Status: 405, Reason: "method_not_allowed", Detail: "method " + method + " not allowed for this path", Allow: strings.Join(found.methods, ", ")}
	}
	if r.query, err = parseQuery(at.query, found.parameters); err != nil {
		return err
	}
	if !ctx.IsPost() && len(ctx.Request.Body()) > 0 {
		return &Error{Status: 400, Reason: "bad_request", Detail: "this request takes no body; parameters go into the query"}
	}
	return found.serve(s, &r)
}

// admit reports whether a request has the token. The error answers one that must have it and has not. Connections without
// it are closed: they are for those who have it.
func (s *Server) admit(ctx *fasthttp.RequestCtx, open bool) (trusted bool, err error) {
	if s.authorized(ctx) {
		protect(ctx.Conn())
		return true, nil
	}
	ctx.SetConnectionClose()
	if open && times(ctx, "Authorization") == 0 {
		return false, nil
	}
	// An open path says more to a client with the token, so a wrong one is a guess there too.
	if wait := s.guard.guess(ctx.RemoteAddr(), time.Now()); wait > 0 {
		return false, &Error{Status: 429, Reason: "too_many_guesses", RetryAfter: wait,
			Detail: "too many requests without the token came from this address; correct the token, and try again later"}
	}
	if open {
		return false, nil
	}
	return false, unauthorized
}

func (s *Server) send(ctx *request) error {
	if times(ctx.RequestCtx, "Content-Type") > 1 {
		return &Error{Status: 415, Reason: "unsupported_media_type", Detail: "Content-Type is given more than once"}
	}
	if kind, _, err := mime.ParseMediaType(string(ctx.Request.Header.ContentType())); err != nil || kind != "application/json" {
		return &Error{Status: 415, Reason: "unsupported_media_type", Detail: "the body must be JSON, with the header Content-Type: application/json"}
	}
	if len(ctx.Request.Header.Peek("Content-Encoding")) > 0 {
		return &Error{Status: 415, Reason: "unsupported_media_type", Detail: "the body must come without Content-Encoding"}
	}
	key, keys := string(ctx.Request.Header.Peek("Idempotency-Key")), times(ctx.RequestCtx, "Idempotency-Key")
	if keys == 0 {
		key = "" // that of a trailer is none
	}
	if keys > 1 || len(key) > maxKey || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
		return &Error{Status: 400, Reason: "bad_idempotency_key", Detail: fmt.Sprintf("Idempotency-Key must be given at most once, and have at most %d characters of printable ASCII", maxKey)}
	}
	ttl, err := duration(ctx.query, "ttl", DefaultTTL, s.options.MinTTL, s.options.MaxTTL)
	if err != nil {
		return err
	}
	wait, err := duration(ctx.query, "wait", 0, 0, MaxWait)
	if err != nil {
		return err
	}
	body := bytes.Clone(bytes.Trim(ctx.PostBody(), " \t\r\n"))
	c, err := s.service.Send(s.ctx, NewCommand{Device: ctx.id, Client: ctx.RemoteAddr().String(), Key: key, Body: body, TTL: ttl})
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
	return write(ctx.RequestCtx, c)
}

func (s *Server) command(ctx *request) error {
	wait, err := duration(ctx.query, "wait", 0, 0, MaxWait)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(s.ctx, wait)
	defer cancel()
	c, err := s.service.Command(waiting, ctx.id, wait > 0)
	if err != nil {
		return err
	}
	return write(ctx.RequestCtx, c)
}

func (s *Server) device(ctx *request) error {
	d, err := s.service.Device(s.ctx, ctx.id)
	if err != nil {
		return err
	}
	return writeJSON(ctx.RequestCtx, shown(&d, time.Now()))
}

// defaultDevices is how many devices are listed without ?limit.
const defaultDevices = 10

func (s *Server) devices(ctx *request) error {
	if ctx.query["order"] != "slowest" {
		return &Error{Status: 400, Reason: "bad_order", Detail: "order must be slowest; to list all devices, use bouncerctl device list"}
	}
	limit := defaultDevices
	if text, given := ctx.query["limit"]; given {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil || n < 1 || n > MaxDevices {
			return &Error{Status: 400, Reason: "bad_limit", Detail: fmt.Sprintf("limit must be a number from 1 to %d", MaxDevices)}
		}
		limit = int(n)
	}
	slowest, err := s.service.Slowest(s.ctx, limit)
	if err != nil {
		return err
	}
	list := api.Devices{Devices: make([]api.Device, len(slowest))}
	now := time.Now()
	for i := range slowest {
		list.Devices[i] = shown(&slowest[i], now)
	}
	return writeJSON(ctx.RequestCtx, list)
}

func shown(d *Device, now time.Time) api.Device {
	j := api.Device{
		ID: d.ID, Registered: d.Registered, Disabled: d.Disabled, Since: at(d.Since), LastAccepted: at(d.LastAccepted),
		Accepted: d.Accepted, Redelivered: d.Redelivered, Refused: d.Refused, Pending: int64(d.Pending),
		OldestSince: at(d.OldestSince), Failures: int64(d.Failures), Suspended: d.Suspended,
	}
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
func duration(query map[string]string, name string, byDefault, least, most time.Duration) (time.Duration, error) {
	text, given := query[name]
	if !given {
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

// health says whether the gateway is healthy; only a client with the token learns what is wrong.
func (s *Server) health(ctx *request) error {
	wrong := s.service.Health()
	if len(wrong) == 0 {
		ctx.SetContentType("application/json")
		ctx.SetBodyString("{\"status\":\"ok\"}\n")
		return nil
	}
	e := &Error{Status: 503, Reason: "unhealthy", Detail: "the gateway does not work as it should; send the request with the token to read why"}
	if ctx.trusted {
		e.Detail = strings.Join(wrong, "; ")
	}
	return e
}

func (s *Server) metrics(ctx *request) error {
	var out bytes.Buffer
	kind, err := s.service.Metrics(&out)
	if err != nil {
		return err
	}
	ctx.SetContentType(kind)
	ctx.SetBody(out.Bytes())
	return nil
}
