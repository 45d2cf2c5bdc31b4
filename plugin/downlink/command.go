package downlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/mqtt"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/rotation"
)

// Bounds of the commands that wait for the broker's thread.
const (
	maxCommandsDown     = 4096
	maxCommandBytesDown = 32 << 20
)

// A Registry knows the devices. Any goroutine.
type Registry interface {
	Lookup(id []byte) *registry.Device // nil: not registered
}

// A Journal keeps devices' answers until they are stored.
type Journal interface {
	Append(*journal.Accepted) (journal.Position, error)
	Done(journal.Position, journal.Outcome)
}

// CommandOptions are what Commands work with.
type CommandOptions struct {
	StateDir string // of the store, and of the record of which secrets devices use; made where there is none
	Topic    string // of commands, with config.DeviceID in it
	Registry Registry
	Keys     *commandkey.Set // of the gateway, for devices with public keys; nil: it has none
	Journal  Journal
	Changed  func(command.Command) // when the state of a command has changed; any goroutine
	Log      *slog.Logger
}

// Commands brings commands from their store to the devices, and the devices' answers back into it. Safe for concurrent use.
type Commands struct {
	options CommandOptions
	log     *slog.Logger
	store   *command.Store
	used    *rotation.Memory // which of its secrets a device has
	keys    atomic.Pointer[commandkey.Set]
	down    *Dispatcher
	queue   *Queue

	stop    chan struct{}
	done    sync.WaitGroup
	closing sync.Once
	asked   chan struct{} // has run look at subscribed

	unsigned rate.Sometimes // in the log

	mu         sync.Mutex // guards what follows; held for a few assignments, also by the broker's thread
	underway   map[string]struct{}
	subscribed map[string]time.Time              // when it did so last, of the devices that have not been sent everything since
	rekeyed    map[publickey.Algorithm]time.Time // when the gateway's key was replaced, of what was not looked at since
}

// StartCommands opens the store and starts the goroutine that sends what waits in it by way of down.
func StartCommands(o CommandOptions, down *Dispatcher) (*Commands, error) {
	if err := os.MkdirAll(o.StateDir, 0o750); err != nil {
		return nil, fmt.Errorf("%w; the broker's user must be able to make it, or to write it", err)
	}
	store, err := command.Open(filepath.Join(o.StateDir, command.FileName), command.Options{Log: o.Log, Changed: o.Changed})
	if err != nil {
		return nil, err
	}
	cs := &Commands{
		options:    o,
		log:        o.Log,
		store:      store,
		down:       down,
		stop:       make(chan struct{}),
		asked:      make(chan struct{}, 1),
		underway:   make(map[string]struct{}),
		subscribed: make(map[string]time.Time),
		rekeyed:    make(map[publickey.Algorithm]time.Time),
		unsigned:   rate.Sometimes{Interval: time.Minute},
	}
	cs.keys.Store(o.Keys)
	cs.used, err = rotation.Open(filepath.Join(o.StateDir, rotation.FileName), rotation.Options{
		Adopted:  cs.resend,
		Rotating: cs.rotating,
		Log:      o.Log,
	})
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	cs.queue = down.messages(maxCommandsDown, maxCommandBytesDown)
	cs.done.Go(cs.run)
	return cs, nil
}

// Close ends the goroutine and closes the store. It may be called more than once.
func (cs *Commands) Close() error {
	cs.closing.Do(func() { close(cs.stop) })
	cs.done.Wait()
	return errors.Join(cs.used.Close(), cs.store.Close())
}

// Errors of Create, in addition to those of command.Store.Create.
var (
	ErrNoSuchDevice = errors.New("no device with this id is registered")
	ErrDisabled     = errors.New("the device is disabled")
	ErrBody         = errors.New("the body") // cannot be sent
)

// Create stores a new command, for Send. Where there is one with the same key already it returns that, and created is false.
// It waits for the disk. The errors that a caller tells apart are ErrNoSuchDevice, ErrDisabled, NoCommandKeyError,
// ErrBody, and those of command.Store.Create.
func (cs *Commands) Create(ctx context.Context, r command.Request) (c command.Command, created bool, err error) {
	device := cs.options.Registry.Lookup([]byte(r.Device))
	switch {
	case device == nil:
		return c, false, ErrNoSuchDevice
	case device.Disabled:
		return c, false, ErrDisabled
	}
	signs, err := cs.credentialOf(device)
	if err != nil {
		return c, false, err
	}
	// The body is put between other members of an object: it must be exactly one value.
	if _, err := envelope.AppendCanonical(nil, r.Body); err != nil {
		return c, false, fmt.Errorf("%w: %w", ErrBody, err)
	}
	now := time.Now()
	if _, err := sign(signs.signer, &command.Command{ID: command.NewID(now), Device: device.ID, Body: r.Body, Created: now, Expires: now}); err != nil {
		return c, false, fmt.Errorf("%w does not fit into an envelope: %w", ErrBody, err)
	}
	r.Device = device.ID
	return cs.store.Create(ctx, r)
}

// Get returns a command. The error is command.ErrNotFound, or the database's.
func (cs *Commands) Get(ctx context.Context, id string) (command.Command, error) {
	return cs.store.Get(ctx, id)
}

// Wait returns a command when it is finished, or as it is when ctx ends. The errors are those of Get.
func (cs *Commands) Wait(ctx context.Context, id string) (command.Command, error) {
	return cs.store.Wait(ctx, id)
}

// Writable returns why the store cannot be written, nil where it can. It waits for the disk.
func (cs *Commands) Writable(ctx context.Context) error { return cs.store.Writable(ctx) }

// Send sends a command that was created just now. Where that cannot be done yet it is done later. Any goroutine.
func (cs *Commands) Send(c command.Command) { cs.send(c) }

// send signs a command so that the device can verify it, and leaves it to the broker's thread. Where that cannot be done
// now the command stays as it is; done is false where only room was wanting, or where it is on its way already, perhaps signed
// with a credential that is not the right one any more. Any goroutine.
func (cs *Commands) send(c command.Command) (done bool) {
	now := time.Now()
	device := cs.options.Registry.Lookup([]byte(c.Device))
	if device == nil || device.Disabled || remaining(c.Expires, now) <= 0 {
		return true
	}
	if cs.queue.Len() >= maxCommandsDown || !cs.begin(c.ID) {
		return false
	}
	signs, signed, err := cs.signFor(device, &c)
	if err != nil {
		cs.forget(c.ID)
		cs.unsigned.Do(func() {
			cs.log.Warn("a command is not sent; the same error is logged once a minute at most", "device", c.Device, "command", c.ID, "error", err)
		})
		return true
	}
	stale := false // broker's thread
	err = cs.down.push(cs.queue, Publish{
		Message: mqtt.Message{Topic: cs.topicOf(c.Device), Payload: signed, QoS: 1},
		Expires: c.Expires,
		Good:    func() bool { stale = !cs.signs(c.Device, signs); return !stale },
		Done: func(given bool) {
			cs.forget(c.ID) // before it is sent again
			switch {
			case given:
				cs.store.Sent(c.ID, time.Now())
			case stale:
				cs.resend(c.Device)
			default:
				cs.resendLater(c.Device)
			}
		},
	})
	if err != nil {
		cs.forget(c.ID)
		return false
	}
	return true
}

// signFor signs a command for a device, and returns what with.
func (cs *Commands) signFor(device *registry.Device, c *command.Command) (signs credential, signed []byte, err error) {
	if signs, err = cs.credentialOf(device); err == nil {
		signed, err = sign(signs.signer, c)
	}
	return signs, signed, err
}

// begin notes that a command is on its way to the broker. It returns false where it is already.
func (cs *Commands) begin(id string) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	_, already := cs.underway[id]
	cs.underway[id] = struct{}{}
	return !already
}

func (cs *Commands) forget(id string) {
	cs.mu.Lock()
	delete(cs.underway, id)
	cs.mu.Unlock()
}

func (cs *Commands) topicOf(device string) string {
	return strings.Replace(cs.options.Topic, config.DeviceID, device, 1)
}

// The payload of a command's envelope:
//
//	{"command":<body>,"expires":<seconds since 1970>}
//
// The envelope's message_id is the command's id, and its timestamp when the command was made, so that the same command
// always is the same bytes, as long as the secret is the same; with ECDSA the signature differs each time. A device recognises
// a repetition only by the id.
func sign(signer envelope.Signer, c *command.Command) ([]byte, error) {
	payload := make([]byte, 0, len(c.Body)+40)
	payload = append(append(payload, `{"command":`...), c.Body...)
	payload = append(strconv.AppendInt(append(payload, `,"expires":`...), c.Expires.Unix(), 10), '}')
	return envelope.Sign(signer, c.Device, c.Created.Unix(), c.ID, payload)
}
