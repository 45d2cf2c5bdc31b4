// Package webhook is the forward.Sink for an HTTP backend: a POST for each message, in the binary mode of CloudEvents, or
// for a batch of them, with an Idempotency-Key, and signed by Standard Webhooks 1.0 where there is a secret.
package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/backendurl"
	"mosquitto-bouncer/plugin/forward"
)

// DefaultTimeout is what a zero Config.Timeout stands for.
const DefaultTimeout = 5 * time.Second

// Config says where requests go and how they look.
type Config struct {
	// URL is an absolute http or https URL. Every {device_id} in its path or query stands for the device's id,
	// escaped; there must be none with Batch. It may not carry user information or a fragment.
	URL string
	// Timeout bounds one request, from dialling to the last byte of the response.
	Timeout time.Duration
	// Concurrency is the largest number of requests in flight, forward.DefaultConcurrency if 0.
	Concurrency int
	// Batch above 1 sends messages as a JSON array of CloudEvents, which are answered only by the status. It is
	// forward.Config.Batch.
	Batch int
	// FatalStatuses are statuses, MinFatalStatus to MaxFatalStatus, that refuse the message for good, whatever they
	// would mean else.
	FatalStatuses []int
	// BearerToken, if not empty, is sent as "Authorization: Bearer TOKEN".
	BearerToken []byte
	// SigningSecret, if not empty, makes every request carry a signature by Standard Webhooks 1.0: "whsec_" and the
	// key in base64, or the key itself.
	SigningSecret []byte
	// TLS is used for https; nil stands for the system's roots and no client certificate. It is cloned.
	TLS *tls.Config
	// Version goes into the User-Agent, mosquitto-bouncer/VERSION.
	Version string

	// idle overrides maxIdleConn, for tests.
	idle time.Duration
}

// Sink sends to one URL. It is safe for concurrent use.
type Sink struct {
	client   *client
	shown    string // the URL without its query
	fatal    []int
	batch    bool
	couriers sync.Pool // of courier
	watch    sync.Once
}

var _ forward.Sink = (*Sink)(nil)

// courier makes one request at a time.
type courier interface {
	pack(m *forward.Message) // adds m to the next request; it may keep m until send
	send() reply             // makes one attempt with what was packed
}

// New returns a Sink. No secret is in the error.
func New(cfg Config) (*Sink, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = forward.DefaultConcurrency
	}
	if cfg.Timeout < 0 || cfg.Concurrency < 0 {
		return nil, errors.New("backend: timeout and concurrency must not be negative")
	}
	t, err := backendurl.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("backend.url: %w", err)
	}
	if cfg.Batch > 1 && t.PerDevice() {
		return nil, fmt.Errorf("backend: url %q: with batch, messages of many devices go in one request: "+
			"remove %s, or batch", cfg.URL, backendurl.Placeholder)
	}
	for _, status := range cfg.FatalStatuses {
		if status < MinFatalStatus || status > MaxFatalStatus {
			return nil, fmt.Errorf("backend: fatal status %d is not %d to %d", status, MinFatalStatus, MaxFatalStatus)
		}
	}
	c, err := newClient(cfg, t)
	if err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	return &Sink{client: c, shown: backendurl.WithoutQuery(cfg.URL), fatal: cfg.FatalStatuses, batch: cfg.Batch > 1}, nil
}

var errNoBatches = errors.New("backend: a batch for a sink of single messages; please report it")

// Send is forward.Sink's. Once ctx is done the Sink cannot be used any more: its connections are closed.
func (s *Sink) Send(ctx context.Context, b *forward.Batch) forward.Result {
	if len(b.Messages) > 1 && !s.batch { // only one would be sent, and all would count as delivered
		return forward.Result{Err: errNoBatches}
	}
	s.watch.Do(func() { context.AfterFunc(ctx, s.client.hangUp) })
	c, _ := s.couriers.Get().(courier)
	switch {
	case c != nil:
	case s.batch:
		c = s.client.batchCourier()
	default:
		c = s.client.courier()
	}
	for i := range b.Messages {
		c.pack(&b.Messages[i])
	}
	r := c.send()
	s.couriers.Put(c) // not after a panic: its state is unknown then
	return s.result(&r, b.Messages[0].DeviceID)
}

// result says what a reply to a message of the device means.
func (s *Sink) result(r *reply, device string) forward.Result {
	result := forward.Result{
		Meaning: r.meaning(s.fatal), Status: r.status, Err: r.err, RetryAfter: r.retryAfter,
		Body: r.body, ContentType: r.contentType, Unusable: r.unusable, Latency: r.latency, Excerpt: r.excerpt,
	}
	switch result.Meaning {
	case forward.Doubtful, forward.RefusesAll:
		result.Address, result.Advice = s.shown, advice(r.status)
	case forward.Gone:
		if result.Address = s.shown; s.client.target.PerDevice() {
			result.OwnAddress = true
			result.Address = backendurl.WithoutQuery(string(s.client.target.Append(nil, device)))
		}
	}
	return result
}

// Renew puts other credentials in force, all at once: for the requests from now on, on connections of their own. What is
// under way continues with those it began with. Any goroutine may call it; it does not wait.
func (s *Sink) Renew(c *Credentials) { s.client.credentials.Store(c) }
