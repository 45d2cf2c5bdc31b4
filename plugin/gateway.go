// Package plugin is the gateway: it decides on every publish that the broker presents, hands the accepted ones on, and
// brings the backend's answers back. It knows neither C nor the broker's structures; package cgo is the translation
// between the two.
package plugin

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
)

// Version is the version of this software.
const Version = "0.1.0"

// Bounds of the implementation.
const (
	// maxRemembered is how many message ids the replay memory holds; when it is full, publishes are refused as
	// overloaded. At 64 bytes an id it is 256 MiB, which a fleet reaches only if it publishes 7,000 messages a second
	// within the default tolerance.
	maxRemembered = 1 << 22
	// How many message ids are forgotten at most in one call of Message and of Tick: more than come in, so that the
	// memory keeps up, and few enough to take microseconds.
	expirePerMessage = 4
	expirePerTick    = 256
	// Answers waiting for the broker's thread.
	maxAnswers      = 8192
	maxAnswerBytes  = 32 << 20
	maxAnswerLength = 64 << 10
	// stopWithin is how long Stop waits for the backend to take what is still queued.
	stopWithin = 4 * time.Second
	// maxCopies is how many redelivered QoS 2 messages are watched at a time.
	maxCopies = 1024
	// maxOffenders is how many clients are disconnected for bad signatures between two ticks.
	maxOffenders = 64
	// maxStackLines is how much of a stack goes to the log after a panic.
	maxStackLines = 40
)

// A Host is the broker as the gateway needs it.
type Host interface {
	// Log writes one line to the broker's log. Broker's thread only.
	Log(level slog.Level, line string)
	// Publish hands a message to the broker for whoever has subscribed to its topic. Broker's thread only.
	Publish(downlink.Publish) error
	// Kick ends a client's connection, without its last will. Broker's thread only, and not while the client is being
	// served.
	Kick(clientID string)
	// Wake ends the present sleep of the broker's thread. Any thread; returns at once.
	Wake()
	// SetOthers says how questions of access are answered that are not the gateway's concern. Broker's thread only.
	SetOthers(Others)
	// Is2_1 reports whether the broker is Mosquitto 2.1 or later.
	Is2_1() bool
}

// A Gateway is one running instance. Its methods are called on the broker's thread alone. None waits for anything,
// but for Start, which reads files, and Stop, which waits for a bounded time.
type Gateway struct {
	host    Host
	file    string // bouncer.toml
	others  string // [acl] others
	started time.Time
	// brokerConf is the broker's configuration at the start, with every acl_file since; nil: it could not be read.
	brokerConf *brokerconf.Config
	gated      []gatedTopic
	own        []gatedTopic
	response   string // topic with config.DeviceID in it; empty: none

	registry  *registry.Registry
	devices   devices
	seen      *replay.Set
	decision  circumstances
	pending   pendingVerdict
	readers   envelope.Decoder // of messages that are being delivered
	released  []byte           // the QoS 2 message that release saw last
	copies    map[messageKey]copies
	bridged   bool       // the broker has bridges of its own, or may have
	departed  uintptr    // the connection that ended last since the last tick; 0: none
	offenders []offender // to be disconnected at the next tick
	maxBad    int        // bad signatures a minute; 0: any number
	forwarder *forward.Forwarder
	answers   *downlink.Queue
	waker     *downlink.Waker
	logs      *logQueue
	log       *slog.Logger
	refusals  *refusalLog
	panics    rate.Sometimes // how often a panic is worth its stack in the log
	clockOff  clockOff
	ticks     uint64 // how often Tick was called
	tickless  bool   // the log has been told that it never is
}

// Start reads the configuration and the registry and starts what runs beside the broker's thread. The error says what is
// wrong in which file, and what to do.
func Start(configFile string, host Host) (_ *Gateway, err error) {
	if strings.Trim(configFile, " \t\"'") != configFile || strings.Contains(configFile, " #") {
		return nil, fmt.Errorf("plugin_opt_config_file is %q: the broker takes the rest of the line as it stands; remove blanks, quotes and comments from it", configFile)
	}
	c, err := config.Load(configFile)
	if err != nil {
		return nil, err
	}
	logs := newLogQueue()
	g := &Gateway{
		host:     host,
		file:     configFile,
		others:   c.ACL.Others,
		started:  time.Now(),
		own:      ownTopics(c),
		response: c.Response.Topic,
		maxBad:   c.Publish.MaxBadSignatures,
		devices:  devices{limit: rate.Inf},
		seen:     replay.New(maxRemembered, c.Publish.Tolerance),
		answers:  downlink.NewQueue(maxAnswers, maxAnswerBytes),
		logs:     logs,
		log:      slog.New(logs),
		refusals: newRefusalLog(),
		copies:   make(map[messageKey]copies),
		panics:   rate.Sometimes{First: 3, Interval: 10 * time.Second},
	}
	defer func() {
		if err != nil {
			g.stop()
			g.flushLog()
		}
	}()
	for _, filter := range c.Publish.Topics {
		g.gated = append(g.gated, newGatedTopic(filter))
	}
	if c.Publish.Rate > 0 {
		g.devices = devices{limit: rate.Limit(c.Publish.Rate), burst: c.Publish.Burst}
	}
	g.decision = circumstances{
		tolerance: int64(c.Publish.Tolerance / time.Second),
		maxBytes:  c.Publish.MaxBytes,
		decoder:   new(envelope.Decoder),
		seen:      g.seen,
	}
	if g.registry, err = registry.Open(c.Database, g.log); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Where("database"), err)
	}
	// From 2.1 on the broker's thread sleeps between a tick and the sending of what was published in it.
	rounds := uint64(1)
	if host.Is2_1() {
		rounds = 2
	}
	g.waker = downlink.NewWaker(host.Wake, rounds, g.log)
	g.forwarder, err = forward.New(forward.Config{
		URL:         c.Backend.URL,
		Timeout:     c.Backend.Timeout,
		Concurrency: c.Backend.Concurrency,
		BearerToken: c.Backend.BearerToken,
		TLS:         c.Backend.TLS,
		Version:     Version,
	}, g.answered, g.log)
	if err != nil {
		return nil, err
	}
	g.log.Info("ready", "version", Version, "config", configFile, "devices", g.registry.Len(),
		"topics", c.Publish.Topics, "backend", c.Backend.URL)
	g.brokerConf, err = brokerconf.Running()
	g.settleOthers(g.brokerConf, err)
	if err = g.checkBroker(); err != nil {
		return nil, err
	}
	g.flushLog()
	return g, nil
}

// settleOthers says in the log how questions of access are answered that are not the gateway's concern. conf is the
// broker's configuration, or nil with the error that kept it from being read.
func (g *Gateway) settleOthers(conf *brokerconf.Config, err error) {
	others, why := resolveOthers(g.others, g.host.Is2_1(), conf, err)
	g.host.SetOthers(others)
	if err != nil && others == OthersDefer && g.others == config.OthersAuto {
		g.log.Warn("it cannot be told whether an acl_file or another plugin decides on other topics; if none does, the broker "+
			"denies them all: make its configuration readable for its user, or set [acl] others in bouncer.toml", "error", why)
	}
	g.log.Info("access to other topics is settled", "others", others, "why", why)
}

// checkBroker looks for what in the broker's configuration would go past the gate: an error for what always does, a line
// in the log for what may be meant so.
func (g *Gateway) checkBroker() error {
	g.bridged = true
	self, err := brokerconf.SelfPath()
	if err != nil || g.brokerConf == nil {
		return nil // said in the log already
	}
	g.bridged = g.brokerConf.Has("connection")
	if line, found := g.brokerConf.PluginBefore(self); found && !g.host.Is2_1() {
		return fmt.Errorf("%s: stands before this plugin, and what it allows would never be checked; put the lines of this plugin first", line)
	}
	if line, found := g.brokerConf.IncomingBridge(); found && g.brokerConf.PerListenerSettings {
		return fmt.Errorf("%s: with per_listener_settings true no plugin is asked about what a bridge brings; set per_listener_settings false, or let the bridge bring nothing", line)
	}
	for _, l := range g.brokerConf.Unguarded(self) {
		g.log.Warn("per_listener_settings is true and this listener has no plugin line: its clients publish to gated topics "+
			"unchecked; add the plugin lines to it", "listener", l.String())
	}
	return nil
}

// Share lets one more plugin line use this gateway: with per_listener_settings each listener has its own. The error says
// why the line is one too many.
func (g *Gateway) Share(configFile string) error {
	switch {
	case g.brokerConf == nil || !g.brokerConf.PerListenerSettings:
		return fmt.Errorf("the plugin is loaded twice%s; remove one of the plugin lines (without per_listener_settings one serves every listener)", g.ownLines())
	case configFile != g.file:
		return fmt.Errorf("plugin_opt_config_file is %q for one listener and %q for another; all listeners share one gateway, so name the same file", g.file, configFile)
	}
	return nil
}

// ownLines returns where the broker's configuration loads this plugin, for an error message.
func (g *Gateway) ownLines() (where string) {
	self, err := brokerconf.SelfPath()
	if err != nil || g.brokerConf == nil {
		return ""
	}
	for _, line := range g.brokerConf.LinesOf(self) {
		where += fmt.Sprintf(", at %s:%d", line.File, line.Number)
	}
	return where
}

// Reload follows the broker's own configuration after SIGHUP. An acl_file that was ever there counts as still there: the
// broker keeps it where anything in its new configuration is wrong, which only it can tell.
func (g *Gateway) Reload() {
	defer func() {
		if v := recover(); v != nil {
			g.survived("reload", v)
		}
	}()
	conf, err := brokerconf.Running()
	switch {
	case g.brokerConf == nil:
		conf, err = nil, errors.New("the broker's configuration could not be read at the start")
	case err == nil:
		conf = g.brokerConf.Reloaded(conf)
		g.brokerConf = conf
	}
	g.settleOthers(conf, err)
	g.flushLog()
}

// An Outcome is what the broker is to do with a publish. The zero value is Refuse.
type Outcome int

// The outcomes.
const (
	Refuse  Outcome = iota // tell the publisher no, and route it to nobody
	Route                  // tell the publisher yes, and route it as it is
	Swallow                // tell the publisher yes, and route it to nobody
)

// Message decides on one publish. A publish to a topic that is neither gated nor the gateway's own is none of its business
// and always routed.
func (g *Gateway) Message(p *Publish) (outcome Outcome) {
	defer func() {
		if v := recover(); v != nil {
			outcome = Refuse
			g.pending.set = false
			g.survived("message", v)
			g.refuse(p, nil, nil, Internal, nil)
		}
	}()
	injectFault(p)
	level, gated := deviceLevel(g.gated, p.Topic)
	if !gated {
		// Access has refused the gateway's topics already, but is not asked of what a bridge brings.
		if _, own := deviceLevel(g.own, p.Topic); own {
			g.decision.now = time.Now()
			g.refuse(p, nil, nil, Forbidden, errOwnTopic)
			return Refuse
		}
		return Route
	}
	v := &g.pending
	if !v.set || !v.samePublish(p) {
		g.endPending()
		g.drain()
		g.decide(p, level)
	}
	v.set = false
	switch v.reason {
	case Accepted:
		v.reason = g.accept(p, v.device, v.envelope)
		if v.reason == Accepted {
			return Route
		}
	case Redelivered:
		return g.redelivered(p, v.device, v.envelope)
	}
	g.refuse(p, v.device, v.envelope, v.reason, v.detail)
	return Refuse
}

// redelivered decides what becomes of a message that was accepted before. What came at QoS 0 or 1 has been routed and is
// swallowed. What came at QoS 2 may still be held by the broker, which knows the copies for the same by their packet id
// and keeps one, provided that it gets it unchanged; or it was dropped with the session, and nobody has had it. So it is
// routed until its release has been seen, and only one of the copies is let out: see release.
func (g *Gateway) redelivered(p *Publish, d *device, e *envelope.Envelope) Outcome {
	serial := d.registered.Serial
	entry, _ := g.seen.Lookup(serial, e.MessageID)
	// Once more on this connection would be a replay.
	const kept = sessionQoS2 | sessionReleased
	g.seen.SetSession(serial, e.MessageID, d.session(p)&^sessionQoS2|entry.Session&kept)
	// A bridge of the broker's own takes part without being asked to read, so a release to it is not seen.
	if p.QoS != 2 || entry.Session&kept != sessionQoS2 || g.bridged {
		return Swallow
	}
	copied := messageKey{serial, e.MessageID}
	if _, already := g.copies[copied]; !already && len(g.copies) == maxCopies {
		return Swallow
	}
	g.copies[copied] = copies{expires: e.Timestamp + g.decision.tolerance, first: g.copies[copied].first}
	return Route
}

// A messageKey names an accepted message.
type messageKey struct {
	serial uint32
	id     [16]byte
}

// copies is what is known of a message of which the broker may hold more than one.
type copies struct {
	expires int64   // when its id is forgotten, in seconds since 1970
	first   uintptr // where the copy lies that was released first; 0: none yet
}

// accept remembers the id of a message that has passed every check and hands the message over. If either cannot be done
// the other is undone: the device may send the message again.
func (g *Gateway) accept(p *Publish, d *device, e *envelope.Envelope) Reason {
	serial := d.registered.Serial
	switch g.seen.Insert(serial, e.MessageID, e.Timestamp, d.remember(e, p)) {
	case replay.Inserted:
	case replay.Full:
		return Overloaded
	default: // judge has ruled out the others
		return Internal
	}
	err := g.forwarder.Enqueue(forward.Message{
		DeviceID:   d.registered.ID,
		MessageID:  uuidText(e.MessageID),
		Timestamp:  e.Timestamp,
		AcceptedAt: g.decision.now,
		Topic:      string(p.Topic),
		Payload:    bytes.Clone(e.Payload),
	})
	if err != nil {
		g.seen.Remove(serial, e.MessageID)
		return Overloaded
	}
	d.published(p.ClientID)
	return Accepted
}

// Tick does what is due when the broker's thread comes round: ten times a second on an idle broker.
func (g *Gateway) Tick() {
	defer func() {
		if v := recover(); v != nil {
			g.survived("tick", v)
		}
	}()
	now := time.Now()
	g.ticks++
	g.endPending()
	g.departed = 0
	g.waker.Tick()
	g.drain()
	// Kick calls Disconnected, which takes the client off the list.
	for len(g.offenders) > 0 {
		last := g.offenders[len(g.offenders)-1]
		g.offenders = g.offenders[:len(g.offenders)-1]
		g.host.Log(slog.LevelWarn, fmt.Sprintf("disconnected for %d bad signatures in a minute ([publish] max_bad_signatures) device=%s client=%s",
			g.maxBad, appendValue(nil, []byte(last.device)), appendValue(nil, []byte(last.client))))
		g.host.Kick(last.client)
	}
	if len(g.copies) > 0 && g.ticks%100 == 0 {
		maps.DeleteFunc(g.copies, func(_ messageKey, c copies) bool { return c.expires < now.Unix() })
	}
	g.seen.Expire(now.Unix(), expirePerTick)
	g.refusals.flush(now, g.host.Log)
}

// Disconnected notes that a client's connection has ended; connection is Publish.Connection.
func (g *Gateway) Disconnected(connection uintptr, identity, clientID []byte) {
	defer func() {
		if v := recover(); v != nil {
			g.survived("disconnect", v)
		}
	}()
	g.endPending()
	g.departed = connection
	g.offenders = slices.DeleteFunc(g.offenders, func(o offender) bool { return o.connection == connection })
	if d := g.devices.known(g.registry.Lookup(identity)); d != nil {
		d.disconnected(clientID)
	}
}

// clockOff is by how many seconds a device's clock is ahead of this host's. It becomes text only if it is logged.
type clockOff int64

func (c *clockOff) Error() string {
	switch off := *c; {
	case off > 1e11:
		return "the timestamp is far ahead of this host's clock: is it in milliseconds?"
	case off > 0:
		return fmt.Sprintf("the timestamp is %d s ahead of this host's clock", off)
	default:
		return fmt.Sprintf("the timestamp is %d s behind this host's clock", -off)
	}
}

// An offender is a client that is to be disconnected, unless its connection ends by itself before.
type offender struct {
	connection uintptr
	device     string
	client     string
}

// endPending closes the case of a message that Access let pass and Message was not asked about: a last will. It was kept
// from subscribers; that it was sent at all is put right here as far as it can be: its id is used up, and where the
// broker has retained it, that is undone.
func (g *Gateway) endPending() {
	v := &g.pending
	if !v.set {
		return
	}
	v.set = false
	if !v.reason.good() {
		return
	}
	g.refuseWill()
	if v.reason == Accepted {
		g.seen.Insert(v.device.registered.Serial, v.envelope.MessageID, v.envelope.Timestamp, v.device.remember(v.envelope, &v.publish))
	}
	if v.publish.Retain {
		if err := g.host.Publish(downlink.Publish{Topic: string(v.publish.Topic), Retain: true}); err != nil {
			g.log.Error("a retained last will stays where it is", "topic", string(v.publish.Topic), "error", err)
		}
	}
}

// missTicks says in the log, once, that the broker never ticks.
func (g *Gateway) missTicks() {
	if g.ticks > 0 || g.tickless || g.decision.now.Sub(g.started) < 5*time.Second {
		return
	}
	g.tickless = true
	g.log.Warn("the broker never ticks: Mosquitto before 2.0.15 does not with per_listener_settings true. Responses wait " +
		"for the next message, and no client is disconnected for bad signatures; upgrade, or set per_listener_settings false")
}

// refuse says in the log why a publish, a will or a subscription was refused, and takes note of devices that keep
// failing.
func (g *Gateway) refuse(p *Publish, d *device, e *envelope.Envelope, reason Reason, detail error) {
	var messageID []byte
	if e != nil {
		messageID = e.MessageIDText
		if reason == Stale || reason == Future {
			g.clockOff = clockOff(e.Timestamp - g.decision.now.Unix())
			detail = &g.clockOff
		}
	}
	g.refusals.refused(g.decision.now, p, d, messageID, reason, detail, g.host.Log)
	if reason == BadSignature && g.maxBad > 0 && d.bad.add(g.decision.now, g.maxBad) && len(g.offenders) < maxOffenders {
		g.offenders = append(g.offenders, offender{p.Connection, string(p.Identity), string(p.ClientID)})
	}
}

// refuseWill says in the log that a last will was kept from subscribers: once for each will.
func (g *Gateway) refuseWill() {
	if g.pending.detail == errWill {
		return
	}
	g.pending.detail = errWill
	g.refuse(&g.pending.publish, g.pending.device, g.pending.envelope, Forbidden, errWill)
}

var (
	errWill         = errors.New("a last will on a gated topic reaches nobody")
	errOwnTopic     = errors.New("the gateway alone publishes on this topic")
	errPublish      = errors.New("a device may publish on its gated topic alone")
	errSubscription = errors.New("a device may subscribe to its own response, command and rejected topics alone")
)

// Stop ends everything that Start began. It waits up to stopWithin for the backend to take what is still queued.
func (g *Gateway) Stop() {
	g.stop()
	g.log.Info("stopped")
	g.flushLog()
}

// stop is Stop of a gateway that may have been started in part.
func (g *Gateway) stop() {
	defer func() {
		if v := recover(); v != nil {
			g.survived("stop", v)
		}
	}()
	if g.forwarder != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		if err := g.forwarder.Close(ctx); err != nil {
			g.log.Error("the backend did not take every accepted message before the stop; the rest is lost", "error", err)
		}
	}
	if g.waker != nil {
		g.waker.Stop()
	}
	if g.registry != nil {
		if err := g.registry.Close(); err != nil {
			g.log.Error("closing the registry", "error", err)
		}
	}
}

// answered takes the backend's answer to one message; the forwarder's goroutines call it.
func (g *Gateway) answered(a forward.Answer) {
	if g.response == "" || len(a.Body) == 0 {
		return
	}
	if len(a.Body) > maxAnswerLength {
		g.log.Warn("the backend's answer is too long for a response and was dropped",
			"device", a.Message.DeviceID, "message_id", a.Message.MessageID, "bytes", len(a.Body))
		return
	}
	first, err := g.answers.Push(downlink.Publish{
		Topic:   strings.Replace(g.response, config.DeviceID, a.Message.DeviceID, 1),
		Payload: a.Body,
		QoS:     1,
	})
	if err != nil {
		g.log.Warn("a response was dropped", "device", a.Message.DeviceID, "message_id", a.Message.MessageID, "error", err)
		return
	}
	if first {
		g.waker.Wake()
	}
}

// drain hands waiting answers and log lines to the broker.
func (g *Gateway) drain() {
	g.answers.Drain(func(p downlink.Publish) {
		if err := g.host.Publish(p); err != nil {
			g.host.Log(slog.LevelWarn, fmt.Sprintf("the broker did not take a response topic=%s error=%q", p.Topic, err))
		}
	})
	g.flushLog()
}

func (g *Gateway) flushLog() { g.logs.drain(g.host.Log) }

// survived reports a panic that was caught on the broker's thread, with the stack a line each, since the broker cuts long
// lines. A client that can provoke one must not fill the log with it.
func (g *Gateway) survived(where string, v any) {
	g.panics.Do(func() {
		g.log.Error("internal error, caught; please report it", "where", where, "panic", fmt.Sprint(v))
		frames := strings.Split(string(debug.Stack()), "\n")
		for _, line := range frames[:min(len(frames), maxStackLines)] {
			g.log.Error("  " + strings.TrimSpace(line))
		}
	})
}

// uuidText returns the text form of a UUID, in lower case (RFC 9562, section 4).
func uuidText(id [16]byte) string {
	var text [envelope.MessageIDLen]byte
	hex.Encode(text[0:8], id[0:4])
	text[8] = '-'
	hex.Encode(text[9:13], id[4:6])
	text[13] = '-'
	hex.Encode(text[14:18], id[6:8])
	text[18] = '-'
	hex.Encode(text[19:23], id[8:10])
	text[23] = '-'
	hex.Encode(text[24:36], id[10:16])
	return string(text[:])
}
