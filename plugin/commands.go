package plugin

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/rotation"
)

// Bounds of the commands on their way to the broker. They have a queue of their own, so that no number of commands keeps
// a response from its device.
const (
	maxCommandsDown     = 4096
	maxCommandBytesDown = 32 << 20
	// commandRetry is the time after which a command is tried again for which there was no room, or whose device was
	// disabled, and the least time between two deliveries of one command.
	commandRetry = time.Second
	// maxSubscribed bounds the devices that have subscribed since the goroutine looked last.
	maxSubscribed = 65536
)

var errCommandID = errors.New("a message_id of version 8 is a command's")

// commands brings commands from their store to the devices, and the devices' answers back into it.
type commands struct {
	g     *Gateway
	store *command.Store
	topic string // with config.DeviceID in it
	// rotation knows which of its secrets a device has.
	rotation *rotation.Memory
	result   gatedTopic // where devices answer
	down     *downlink.Queue

	stop chan struct{}
	done sync.WaitGroup
	kick chan struct{}

	mu         sync.Mutex // guards what follows; held for a few assignments, also by the broker's thread
	underway   map[string]struct{}
	subscribed map[string]time.Time // when it did so last, of the devices that have not got everything since
}

// startCommands opens the store and starts the goroutine that sends what waits in it.
func (g *Gateway) startCommands(c *config.Config) (err error) {
	if err := os.MkdirAll(c.StateDir, 0o750); err != nil {
		return fmt.Errorf("%s: %w; the broker's user must be able to make it, or to write it", c.Where("state_dir"), err)
	}
	store, err := command.Open(filepath.Join(c.StateDir, command.FileName), command.Options{Log: g.log, Changed: g.auditCommand})
	if err != nil {
		return fmt.Errorf("%s: %w", c.Where("state_dir"), err)
	}
	cs := &commands{
		g:          g,
		store:      store,
		topic:      c.Command.Topic,
		result:     resultTopic(c),
		down:       downlink.NewQueue(maxCommandsDown, maxCommandBytesDown),
		stop:       make(chan struct{}),
		kick:       make(chan struct{}, 1),
		underway:   make(map[string]struct{}),
		subscribed: make(map[string]time.Time),
	}
	if err := cs.startRotation(c); err != nil {
		return errors.Join(err, store.Close())
	}
	cs.done.Go(cs.run)
	g.commands = cs
	g.rotated.Store(cs)
	g.gated = append(g.gated, cs.result)
	return nil
}

// auditCommand records what has become of a command. Any goroutine.
func (g *Gateway) auditCommand(c command.Command) {
	g.audit.Add(audit.Record{Event: audit.Command, Device: c.Device, MessageID: c.ID, Change: string(c.State)})
}

// resultTopic is where devices answer to commands.
func resultTopic(c *config.Config) gatedTopic {
	return newGatedTopic(strings.Replace(c.Command.ResultTopic(), config.DeviceID, "+", 1))
}

func (cs *commands) close() error {
	close(cs.stop)
	cs.done.Wait()
	return errors.Join(cs.rotation.Close(), cs.store.Close())
}

// isAnswer reports whether a gated topic is that of the answers to commands.
func (cs *commands) isAnswer(topic []byte) bool {
	if cs == nil {
		return false
	}
	_, is := cs.result.device(topic)
	return is
}

// admit refuses a good message that is no device's to send: one with the id of a command, and on the topic of the answers
// to commands, what is none. It would be remembered there and reach nobody, and the device's own copy on the topic that it
// is meant for would be in vain. Broker's thread.
func (cs *commands) admit(p *Publish, e *envelope.Envelope) (Reason, error) {
	if command.IsID(e.MessageID) {
		return Malformed, errCommandID
	}
	if cs.isAnswer(p.Topic) {
		if err := command.CheckAnswer(e.Payload); err != nil {
			return Malformed, err
		}
	}
	return Accepted, nil
}

// take hands a device's answer, which is at pos in the journal until it is stored, to the store. Broker's thread.
func (cs *commands) take(a journaledAnswer) {
	stored := func() { cs.g.journal.Done(a.pos, journal.Delivered) }
	if cs.store.Answered(a.device, a.payload, a.at, stored) != nil {
		cs.g.log.Error("the answer to a command waits in the journal for the next start", "device", a.device)
	}
}

// A journaledAnswer is one that is acknowledged to its device, and not stored yet.
type journaledAnswer struct {
	pos     journal.Position
	device  string
	payload []byte
	at      time.Time
}

// restoreAnswers brings answers from the journal into the store. Without a store nobody asks for them any more.
func (g *Gateway) restoreAnswers(answers []journaledAnswer) {
	if g.commands == nil {
		for _, a := range answers {
			g.journal.Done(a.pos, journal.Delivered)
		}
		if len(answers) > 0 {
			g.log.Warn("answers to commands were dropped, because [http] listen is not set any more", "answers", len(answers))
		}
		return
	}
	for _, a := range answers {
		g.commands.take(a)
	}
}

// wanted notes that a device subscribes to its commands: it gets those that wait for its answer. It may have been away
// without a session when they were sent. Broker's thread.
func (cs *commands) wanted(identity, topic []byte) {
	if cs == nil || cs.store.Len() == 0 || string(topic) != strings.Replace(cs.topic, config.DeviceID, string(identity), 1) {
		return
	}
	cs.mu.Lock()
	if len(cs.subscribed) < maxSubscribed {
		cs.subscribed[string(identity)] = time.Now()
	}
	cs.mu.Unlock()
	cs.wake()
}

// wake has run look at who has subscribed.
func (cs *commands) wake() {
	select {
	case cs.kick <- struct{}{}:
	default:
	}
}

// run sends what was not sent when it came, and at first also what was: the broker may have lost it in a crash, and a
// device that finds its session again has no reason to subscribe.
func (cs *commands) run() {
	began := time.Now()
	waiting := cs.store.Unfinished("", began)
	cs.mu.Lock()
	for _, c := range waiting {
		cs.subscribed[c.Device] = began
	}
	cs.mu.Unlock()
	cs.serveSubscribed()
	every := time.NewTicker(commandRetry)
	defer every.Stop()
	for {
		select {
		case <-cs.stop:
			return
		case <-every.C:
			cs.retry()
			cs.serveSubscribed()
		case <-cs.kick:
			cs.serveSubscribed()
		}
	}
}

func (cs *commands) retry() {
	if cs.store.Len() == 0 {
		return
	}
	now := time.Now()
	for _, c := range cs.store.Unfinished("", now) {
		if c.State == command.Queued && now.Sub(c.Created) > commandRetry {
			cs.trySend(c)
		}
	}
}

func (cs *commands) serveSubscribed() {
	cs.mu.Lock()
	devices := cs.subscribed
	cs.subscribed = make(map[string]time.Time)
	cs.mu.Unlock()
	now := time.Now()
	for device, since := range devices {
		again := false // at the next tick of run
		for _, c := range cs.store.Unfinished(device, now) {
			switch {
			case !c.SentAt.Before(since): // it has been sent for this subscription
			case now.Sub(c.SentAt) <= commandRetry: // unless it has answered by then
				again = true
			case !cs.trySend(c):
				again = true
			}
		}
		if again {
			cs.mu.Lock()
			if _, newer := cs.subscribed[device]; !newer {
				cs.subscribed[device] = since
			}
			cs.mu.Unlock()
		}
	}
}

// trySend is send for the goroutine, which is to outlive a panic.
func (cs *commands) trySend(c command.Command) (done bool) {
	defer func() {
		if v := recover(); v != nil {
			done = true
			cs.g.log.Error("internal error, caught; please report it", "where", "command", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	return cs.send(c)
}

// send signs a command with the secret that the device has and leaves it to the broker's thread. Where that cannot be done now
// the command stays as it is; done is false where only room was wanting. Any goroutine.
func (cs *commands) send(c command.Command) (done bool) {
	now := time.Now()
	device := cs.g.registry.Lookup([]byte(c.Device))
	if device == nil || device.Disabled || remaining(c.Expires, now) <= 0 {
		return true
	}
	secret := cs.signingSecret(device)
	signed, err := signCommand(secret, &c)
	if err != nil {
		cs.g.log.Error("a command could not be signed", "device", c.Device, "command", c.ID, "error", err)
		return true
	}
	cs.mu.Lock()
	_, already := cs.underway[c.ID]
	cs.underway[c.ID] = struct{}{}
	cs.mu.Unlock()
	if already {
		return true
	}
	first, err := cs.down.Push(downlink.Publish{
		Topic:   strings.Replace(cs.topic, config.DeviceID, c.Device, 1),
		Payload: signed,
		QoS:     1,
		Expires: c.Expires,
		Good: func() bool {
			good := cs.signs(c.Device, secret)
			if !good {
				cs.again(c.Device)
			}
			return good
		},
		Done: func(given bool) {
			cs.forget(c.ID)
			if given {
				cs.store.Sent(c.ID, time.Now())
			}
		},
	})
	if err != nil {
		cs.forget(c.ID)
		return false
	}
	if first {
		cs.g.waker.Wake()
	}
	return true
}

func (cs *commands) forget(id string) {
	cs.mu.Lock()
	delete(cs.underway, id)
	cs.mu.Unlock()
}

// The payload of a command's envelope:
//
//	{"command":<body>,"expires":<seconds since 1970>}
//
// The envelope's message_id is the command's id, and its timestamp when the command was made, so that the same command
// always is the same bytes, as long as the secret is the same: a device knows a repetition by the id alone.
func signCommand(secret registry.Secret, c *command.Command) ([]byte, error) {
	payload := make([]byte, 0, len(c.Body)+40)
	payload = append(append(payload, `{"command":`...), c.Body...)
	payload = append(strconv.AppendInt(append(payload, `,"expires":`...), c.Expires.Unix(), 10), '}')
	return envelope.Sign(secret, c.Device, c.Created.Unix(), c.ID, payload)
}

// remaining is for how many seconds the broker may keep a message so that it delivers it before expires, which is in whole
// seconds: 0 or less, not at all. The broker goes by whole seconds of its clock, the last one included, and takes an
// interval of 0 for no limit.
func remaining(expires, now time.Time) int64 { return expires.Unix() - now.Unix() - 1 }

// drainCommands hands waiting commands to the broker.
func (g *Gateway) drainCommands() {
	if g.commands == nil {
		return
	}
	g.commands.down.Drain(g.publishDown)
}

// publishDown gives a message to the broker, unless its time is up.
func (g *Gateway) publishDown(p downlink.Publish) {
	given := g.give(&p)
	if p.Done != nil {
		p.Done(given)
	}
}

func (g *Gateway) give(p *downlink.Publish) bool {
	if !p.Expires.IsZero() {
		left := remaining(p.Expires, time.Now())
		if left <= 0 {
			return false
		}
		p.Expiry = uint32(left)
	}
	if p.Good != nil && !p.Good() {
		return false
	}
	if err := g.host.Publish(*p); err != nil {
		g.figures.downRefused.Add(1)
		if g.sampler.Allow(time.Now(), []byte(p.Topic), "not taken by the broker", false) {
			g.host.Log(slog.LevelWarn, fmt.Sprintf("the broker did not take a message for a device topic=%s error=%q", p.Topic, err))
		}
		return false
	}
	g.figures.downPublished.Add(1)
	return true
}
