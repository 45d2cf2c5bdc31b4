package device

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"

	"mosquitto-bouncer/plugin/deviceid"
)

// Topics are a device's topics. Those that the gateway does not have are empty.
type Topics struct {
	Data     string `json:"data"`
	Response string `json:"response"`
	Rejected string `json:"rejected"`
	Command  string `json:"command"` // answers go to this topic with /result behind it
}

// A Config is what a Device needs to know. FromBundle reads it.
type Config struct {
	DeviceID   string
	Address    string      // of the broker, host:port
	TLS        *tls.Config // the CA, the server's name and the device's certificate
	Credential *Credential
	Topics     Topics
	Tolerance  time.Duration // the gateway's [publish] tolerance; 0: 300 s
}

// Options are the settings of a Device. The zero value is the specification's.
type Options struct {
	// State is the directory of the outbox; it is made if there is none. FromBundle: "state" in the bundle, if empty.
	State string
	// MaxMessages and MaxBytes bound the outbox: how many messages, and how many bytes their payloads have together. 0: 10,000
	// and 16 MiB. Answers to commands have room of their own, for 256.
	MaxMessages, MaxBytes int
	// MaxMessageBytes is the greatest length of a signed message, at most 1 MiB. 0: 65536, the gateway's own default.
	MaxMessageBytes int
	// Commands is how many commands are remembered. 0: 256.
	Commands int
	// Tolerance is in place of the Config's. What was signed longer ago than this less 30 s is signed again before it is sent again;
	// 30 s or less: whatever was sent before.
	Tolerance time.Duration
	// NeverRepeat makes the outcome Unknown where a message would otherwise be signed again although an earlier copy may have
	// been accepted.
	NeverRepeat bool
	// Now is the system's clock. nil: time.Now.
	Now func() time.Time
	// Log gets what happens, never a secret or a payload. nil: nothing is logged.
	Log *slog.Logger
	// Key signs messages in place of the bundle's secret or signing_key file, and Certificate is in place of the files
	// certificate and key: for keys in a secure element. nil: the files.
	Credential  *Credential
	Certificate *tls.Certificate
}

const (
	defaultMessages  = 10_000
	defaultBytes     = 16 << 20
	defaultTolerance = 300 * time.Second
	toleranceMargin  = 30 * time.Second
	maxAnswers       = 256 // in the outbox
	maxPending       = 256 // commands that wait for the handler
)

// A Reply is what became of a command.
type Reply struct {
	Status Status // Failed, if it is none of the three
	Result any    // becomes JSON; nil: no result. A json.RawMessage is taken as it is
}

// A Device is a device that is connected, or tries to be. Set the functions before Start; a nil one is not called. They are
// called one at a time each, and none but OnCommand may wait for anything.
type Device struct {
	// OnCommand executes a command. An error or a panic answers Failed with its text as the result. ctx ends with the Device.
	// Without this function commands are rejected.
	OnCommand func(ctx context.Context, c Command) (Reply, error)
	// OnCommandRefused hears of commands that were not executed: malformed, foreign, forged, expired or repeated.
	OnCommandRefused func(Reason)
	// OnOutcome gets the outcomes of messages that an earlier process left in the outbox.
	OnOutcome func(Outcome)
	// OnResponse gets the backend's responses.
	OnResponse func(text string)
	// OnConnected and OnDisconnected hear of connections; err says why one ended, nil when Close ended it.
	OnConnected    func()
	OnDisconnected func(err error)
	// OnError hears of what the Device cannot tell otherwise: no connection, a refused subscription, a full disk.
	OnError func(error)

	config  Config
	options Options
	log     *slog.Logger
	wake    chan struct{} // of the engine: there is something to send
	pending chan Command  // to the command handler

	transport func(context.Context) (net.Conn, error)
	callbacks sync.Mutex // of the functions that several goroutines call

	mu      sync.Mutex // guards what follows, and the store's contents
	store   *store
	started bool
	closed  bool
	stop    context.CancelFunc // of what Start has started
	running sync.WaitGroup
	ended   chan struct{} // closed by Close
}

// An OutcomeKind says what became of a message.
type OutcomeKind string

// The outcomes.
const (
	Accepted OutcomeKind = "accepted" // the gateway has it, and delivers it once
	Refused  OutcomeKind = "refused"  // Reason says why
	Unknown  OutcomeKind = "unknown"  // an earlier copy may have been accepted; of Options.NeverRepeat
)

// An Outcome is what became of a message.
type Outcome struct {
	Delivery      uint64 // the number of the Delivery
	Kind          OutcomeKind
	Reason        string // of a refusal: see docs/envelope.md and ../README.md
	MessageID     string // the last, if it was signed more than once
	Sent          int    // how often it was sent
	MayBeRepeated bool   // it was signed again although an earlier copy may have been accepted
}

// A Delivery is a message on its way.
type Delivery struct {
	number  uint64
	done    chan struct{}
	ended   <-chan struct{} // the Device's
	outcome Outcome
}

// Number is the message's number in this state directory, the same after a restart.
func (d *Delivery) Number() uint64 { return d.number }

// Done is closed when there is an outcome.
func (d *Delivery) Done() <-chan struct{} { return d.done }

// Wait waits for the outcome. The error is that of ctx, or ErrClosed: then the message stays in the outbox, and is sent by the
// next Device with this state.
func (d *Delivery) Wait(ctx context.Context) (Outcome, error) {
	select {
	case <-d.done:
		return d.outcome, nil
	default:
	}
	select {
	case <-d.done:
		return d.outcome, nil
	case <-d.ended:
		return Outcome{}, ErrClosed
	case <-ctx.Done():
		return Outcome{}, context.Cause(ctx)
	}
}

// Open makes a Device and reads its outbox. Close it.
func Open(config Config, options Options) (*Device, error) {
	if !deviceid.Valid(config.DeviceID) {
		return nil, errDeviceID
	}
	if config.Credential == nil || config.Credential.signer == nil {
		return nil, errors.New("device: no credential")
	}
	if config.TLS == nil || config.TLS.RootCAs == nil || config.TLS.InsecureSkipVerify {
		return nil, errors.New("device: the TLS settings have no CA, or do not verify the broker")
	}
	if config.Topics.Data == "" || config.Address == "" || options.State == "" {
		return nil, errors.New("device: the data topic, the broker's address or the state directory is missing")
	}
	setDefault(&options.MaxMessages, defaultMessages)
	setDefault(&options.MaxBytes, defaultBytes)
	setDefault(&options.MaxMessageBytes, MaxMessageBytes)
	setDefault(&options.Commands, DefaultCommands)
	setDefault(&options.Tolerance, config.Tolerance)
	setDefault(&options.Tolerance, defaultTolerance)
	if options.MaxMessages < 1 || options.MaxBytes < 1 || options.Commands < 1 || options.Tolerance < time.Second ||
		options.MaxMessageBytes < 512 || options.MaxMessageBytes > maxMessageBytes {
		return nil, errors.New("device: an option is outside of its range")
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{
		config: config, options: options, log: options.Log.With("device_id", config.DeviceID),
		wake: make(chan struct{}, 1), pending: make(chan Command, maxPending), ended: make(chan struct{}),
	}
	d.transport = func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: config.TLS}).DialContext(ctx, "tcp", config.Address)
	}
	var err error
	if d.store, err = openStore(options.State, config.DeviceID, options.Commands); err != nil {
		return nil, err
	}
	return d, nil
}

func setDefault[T comparable](value *T, otherwise T) {
	var zero T
	if *value == zero {
		*value = otherwise
	}
}

// Start connects, and goes on until Close.
func (d *Device) Start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if d.started {
		return errors.New("device: started already")
	}
	d.started = true
	ctx, cancel := context.WithCancel(context.Background())
	d.stop = cancel
	d.running.Go(func() { d.connect(ctx) })
	d.running.Go(func() { d.execute(ctx) })
	return nil
}

// Close ends the connection in order and returns when everything has ended, a command's handler included. What has no outcome
// stays in the outbox. Do not call it from one of the Device's functions.
func (d *Device) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	stop := d.stop
	d.mu.Unlock()
	if stop != nil {
		stop()
	}
	d.running.Wait()
	close(d.ended)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.store.close()
}

// Publish puts a message into the outbox, from which it is sent when that is possible: it is on the disk when Publish returns.
// value becomes JSON as encoding/json writes it; a json.RawMessage is sent as it is. The error is an *Error with the reason
// payload, too_large or full, ErrClosed, or that of the disk.
func (d *Device) Publish(ctx context.Context, value any) (*Delivery, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	payload, err := d.encode(value)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	s := d.store
	if len(s.queue)-s.answers >= d.options.MaxMessages || s.bytes+len(payload) > d.options.MaxBytes {
		return nil, errFull
	}
	m, err := d.enqueue(record{Op: opQueue, Topic: d.config.Topics.Data, Raw: payload})
	if err != nil {
		return nil, err
	}
	m.delivery = &Delivery{number: m.number, done: make(chan struct{}), ended: d.ended}
	return m.delivery, nil
}

// enqueue adds a message, after what is written with it. d.mu is held.
func (d *Device) enqueue(r record, before ...record) (*message, error) {
	r.Number = d.store.next
	if err := d.store.write(true, append(before, r)...); err != nil {
		return nil, err
	}
	m, _ := d.store.find(r.Number)
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return m, nil
}

// encode returns a value as JSON, if a message has room for it.
func (d *Device) encode(value any) ([]byte, error) {
	raw, isText := value.(json.RawMessage)
	if !isText {
		var err error
		// As encoding/json, but texts that are not UTF-8 and keys that become equal are errors.
		raw, err = jsonv2.Marshal(value, jsonv1.DefaultOptionsV1(), jsontext.AllowInvalidUTF8(false),
			jsontext.AllowDuplicateNames(false), jsontext.EscapeForHTML(false), jsontext.EscapeForJS(false))
		if err != nil {
			return nil, &Error{BadPayload, fmt.Sprintf("the value does not become JSON: %v", err)}
		}
	}
	payload, err := checkPayload(raw, d.options.MaxMessageBytes)
	if err != nil {
		return nil, err
	}
	if d.tooLarge(payload) {
		return nil, errTooLarge
	}
	return payload, nil
}

// tooLarge reports whether a message with this payload would be longer than the limit, now and for a long time.
func (d *Device) tooLarge(payload []byte) bool {
	const digits10 = 1_000_000_000
	return messageLen(d.config.DeviceID, digits10, len(payload), d.config.Credential.signature) > d.options.MaxMessageBytes
}

// now is the time in seconds since 1970, by the system's clock and the offset. d.mu is held.
func (d *Device) now() int64 {
	return min(max(d.options.Now().Unix()+d.store.offset, 0), maxInteger)
}

// report hands an error to OnError.
func (d *Device) report(err error) {
	d.log.Warn("device error", "error", err)
	if d.OnError != nil {
		d.callbacks.Lock()
		defer d.callbacks.Unlock()
		d.OnError(err)
	}
}
