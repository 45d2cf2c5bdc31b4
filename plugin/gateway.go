// Package plugin is the gateway: it decides on every publish that the broker presents, hands the accepted ones on, and
// brings the backend's answers back. It knows neither C nor the broker's structures; package cgo is the translation
// between the two.
package plugin

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/backendurl"
	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/brokerlog"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/outbox"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/retained"
	"mosquitto-bouncer/plugin/sampler"
	"mosquitto-bouncer/plugin/subscription"
	"mosquitto-bouncer/plugin/version"
	"mosquitto-bouncer/plugin/writable"
)

// Version is the version of this software.
const Version = version.Number

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
	// stopWithin is how long Stop waits for the backend to take what is still queued. The rest is delivered after the
	// next start.
	stopWithin = 1500 * time.Millisecond
	// stopAuditWithin is how long it waits for the audit log.
	stopAuditWithin = time.Second
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
	// KickUser ends the connections of all clients with a user name, without their last wills. As Kick.
	KickUser(username string)
	// Fingerprint returns the SHA-256 of the certificate that a client presented, false where it has none. Broker's thread
	// only, with the Connection of the Publish that the broker presents.
	Fingerprint(connection uintptr) ([32]byte, bool)
	// Wake ends the present sleep of the broker's thread. Any thread; returns at once.
	Wake()
	// SetIssuers sets the certificates of CAs, DER, of which one must have signed the certificate of a client that is a device;
	// none: any may have. False: one of them cannot be used, and those that were set before stay. Broker's thread only.
	SetIssuers([][]byte) bool
	// SetOthers says how questions of access are answered that are not the gateway's concern. Broker's thread only.
	SetOthers(Others)
	// SetStrangers says by what clients have to be told apart whose certificates are no registered device's. Broker's
	// thread only.
	SetStrangers(Strangers)
	// Is2_1 reports whether the broker is Mosquitto 2.1 or later.
	Is2_1() bool
	// Traceparent returns what the user property of this name says, "" if there is none or it is longer than one can be.
	// properties are Publish.Properties. Broker's thread only.
	Traceparent(properties unsafe.Pointer) string
	// Properties returns what subscribers see of Publish.Properties, for downlink.Publish; nil: there is no memory for it.
	// Broker's thread only.
	Properties(properties unsafe.Pointer) []byte
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
	gated      []gate.Topic
	own        []gate.Topic

	// removed is confinement.removed; nil: it is not read yet.
	removed      atomic.Pointer[former.Set]
	confinement  confinement
	deviceChange func() // see OnDeviceChange; nil: not set yet
	verified     *retained.Memory
	// forgetRetained forgets what was retained of removed devices; nil: nothing is known yet.
	forgetRetained atomic.Pointer[func(ids []string)]
	clearer        *downlink.Clearer
	orders         *orders
	registry       *registry.Registry
	clientIDs      clientIDs
	devices        devices
	seen           *replay.Set
	decision       circumstances
	pending        pendingVerdict
	readers        envelope.Decoder // of messages that are being delivered
	relay          relay
	unsent         unsent
	served         served
	departed       uintptr // the connection that ended last since the last tick; 0: none
	offenders      offenders
	maxBad         int           // bad signatures a minute; 0: any number
	sink           *webhook.Sink // of outbox
	outbox         *outbox.Outbox
	record         journal.Accepted // what accept appends

	down     *downlink.Dispatcher
	waker    *downlink.Waker
	logs     *brokerlog.Queue
	log      *slog.Logger
	config   *config.Config // as it is in force
	reloader *reloader
	revoked  revoked
	audit    *audit.Log       // nil: none
	sampler  *sampler.Sampler // of every log line that a client can provoke
	refusals refusalLog
	panics   rate.Sometimes // how often a panic is worth its stack in the log
	clockOff clockOff
	ticks    uint64 // how often Tick was called
	tickless bool   // the log has been told that it never is

	subscriptions    *subscription.Table
	sessionQuestions *sessionQuestions

	responses *downlink.Responses
	notices   notices
	results   gate.Topic                        // where devices answer to commands
	commands  *downlink.Commands                // nil: without an HTTP listener there are none
	rotated   atomic.Pointer[downlink.Commands] // the same, for the registry's goroutine
	server    atomic.Pointer[httpd.Server]      // nil: none; it serves before it is set here
	questions questions
	slowest   slowest
	writable  *writable.Checks
	checks    []func() error // each says what is wrong, for the health check; any goroutine
	figures   figures
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
	logs, lines := brokerlog.NewQueue(), sampler.New()
	g := &Gateway{
		host:     host,
		file:     configFile,
		config:   c,
		others:   c.ACL.Others,
		started:  time.Now(),
		own:      ownTopics(c),
		notices:  notices{topic: c.Rejected.Topic},
		maxBad:   c.Publish.MaxBadSignatures,
		devices:  devices{limit: rate.Inf},
		seen:     replay.New(maxRemembered, c.Publish.Tolerance),
		logs:     logs,
		log:      slog.New(lines.Handler(logs)),
		sampler:  lines,
		refusals: refusalLog{sampler: lines},
		relay:    newRelay(),
		writable: writable.New(slog.New(logs)),
		panics:   rate.Sometimes{First: 3, Interval: 10 * time.Second},

		subscriptions: subscription.New(),
	}
	g.sessionQuestions = newSessionQuestions(g.subscriptions)
	defer func() {
		if err != nil {
			g.stop()
			g.flushLog()
		}
	}()
	for _, filter := range c.Publish.Topics {
		g.gated = append(g.gated, gate.NewTopic(filter))
	}
	g.devices.limit, g.devices.burst = deviceLimit(c)
	g.decision = circumstances{
		tolerance: int64(c.Publish.Tolerance / time.Second),
		maxBytes:  c.Publish.MaxBytes,
		decoder:   new(envelope.Decoder),
		seen:      g.seen,
	}
	g.decision.decoder.MessageID = func(id [16]byte) {
		if d := g.pending.device; d != nil {
			g.seen.Prefetch(d.registered.Serial, id)
		}
	}
	key, err := registryKey(c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Where("registry.key_file"), err)
	}
	if c.Audit.File != "" {
		if g.audit, err = audit.Open(auditOptions(c), g.log); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Where("audit.file"), err)
		}
	}
	if g.registry, err = registry.Open(c.Database, g.log, registry.WithKey(key)); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Where("database"), err)
	}
	g.clientIDs.isDevice = g.confinement.isDevice
	// From 2.1 on the broker's thread sleeps between a tick and the sending of what was published in it.
	rounds := uint64(1)
	if host.Is2_1() {
		rounds = 2
	}
	g.waker = downlink.NewWaker(host.Wake, rounds, g.log)
	g.startResponses(c)
	g.unsent.publishesBeforeTick = host.Is2_1()
	g.reloader = newReloader(configFile, g.waker.Wake, g.log)
	g.registry.OnChanges(g.devicesChanged)
	if err = g.startDelivery(c); err != nil {
		return nil, err
	}
	if err = g.startConfinement(c); err != nil {
		return nil, err
	}
	if c.HTTP.Listen != "" {
		if err = g.startCommands(c); err != nil {
			return nil, err
		}
	}
	if err = g.startRetained(c); err != nil {
		return nil, err
	}
	g.restoreAnswers()
	if err = g.useIssuers(c.Publish.Issuers, c.Where("publish.issuers")); err != nil {
		return nil, err
	}
	g.brokerConf, err = brokerconf.Running()
	g.settleOthers(g.brokerConf, err)
	g.decision.userNameIsClientID = userNameIsClientID(g.brokerConf)
	g.sessionQuestions.unasked = !g.asksSessions()
	g.settleStrangers(g.brokerConf)
	if err = g.checkBroker(); err != nil {
		return nil, err
	}
	g.watchStores()
	if err = g.startOrders(c); err != nil {
		return nil, err
	}
	if c.HTTP.Listen != "" {
		if err = g.serve(c); err != nil {
			return nil, err
		}
	}
	g.publishUnsent(filepath.Join(c.StateDir, journal.DirName))
	g.log.Info("ready", "version", Version, "config", configFile, "devices", g.registry.Len(),
		"topics", c.Publish.Topics, "backend", backendurl.WithoutQuery(c.Backend.URL))
	g.audit.Add(audit.Record{Event: audit.Start, Version: Version})
	g.flushLog()
	return g, nil
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
	g.figures.tick(now)
	g.endPending()
	g.served = served{}
	g.departed = 0
	g.waker.Tick()
	g.relay.ticked()
	g.unsent.ticked()
	g.drain()
	g.outbox.Tick()
	g.kickRevoked()
	g.followStrangers()
	g.offenders.disconnect(g.host.Kick, func(device, line string) {
		if g.sampler.Allow(now, []byte(device), "disconnected", false) {
			g.host.Log(slog.LevelWarn, line)
		}
	})
	g.sessionQuestions.tick(g.ticks, g.host.Publish)
	g.seen.Expire(now.Unix(), expirePerTick)
	g.outbox.NoteForgotten(now.Unix())
	reportLeftOut(g.sampler, now, g.host.Log)
}

// Disconnected notes that a client's connection has ended, and what has become of its session. Of p only Connection,
// Identity and ClientID count.
func (g *Gateway) Disconnected(p *gate.Publish, end subscription.End) {
	defer func() {
		if v := recover(); v != nil {
			g.survived("disconnect", v)
		}
	}()
	g.endPending()
	g.departed = p.Connection
	noted := g.offenders.ended(p.Connection)
	if g.clientIDs.foreign(p) {
		if !noted && !g.offenders.kicking {
			g.foreignEnded(p)
		}
		return
	}
	for _, holder := range [][]byte{p.Identity, uncertified(p.Identity)} { // no certificate is shown any more
		if session, ask := g.subscriptions.Ended(holder, p.ClientID, p.Connection, end); ask {
			g.sessionQuestions.add(session, end)
		}
	}
	if d := g.devices.known(g.registry.Lookup(p.Identity)); d != nil {
		d.disconnected(p.ClientID)
	}
}

// SessionQuestion returns the payload of messages that nobody may read, for as long as the gateway runs.
func (g *Gateway) SessionQuestion() []byte { return g.sessionQuestions.message }

// ListenerSettings reports whether the broker has per_listener_settings true, or may have.
func (g *Gateway) ListenerSettings() bool {
	return g.brokerConf == nil || g.brokerConf.PerListenerSettings
}

// asksSessions reports whether the broker answers questions about sessions: a bridge of its own would be sent them, and
// with per_listener_settings it does not ask about sessions that are away.
func (g *Gateway) asksSessions() bool {
	return !g.ListenerSettings() && !g.brokerConf.Has("connection")
}

// Stop ends everything that Start began. It waits up to stopWithin for the backend to take what is still queued.
func (g *Gateway) Stop() {
	g.audit.Add(audit.Record{Event: audit.Stop, Version: Version})
	g.stop()
	g.log.Info("stopped", g.Stats().Accounts.Attrs()...)
	g.flushLog()
}

// stop is Stop of a gateway that may have been started in part.
func (g *Gateway) stop() {
	defer func() {
		if v := recover(); v != nil {
			g.survived("stop", v)
		}
	}()
	if g.responses != nil {
		g.responses.Stop()
	}
	if server := g.server.Load(); server != nil {
		if err := server.Stop(); err != nil {
			g.log.Error("closing the HTTP listener", "error", err)
		}
	}
	g.writable.Stop()
	g.saveUnsent()
	if g.commands != nil {
		if err := g.commands.Close(); err != nil {
			g.log.Error("closing the store of commands", "error", err)
		}
	}
	if g.outbox != nil {
		g.outbox.Close(stopWithin)
	}
	if g.reloader != nil {
		g.reloader.stop() // it wakes, as does the registry, so they go first
	}
	if g.orders != nil {
		g.orders.stop()
	}
	if g.verified != nil {
		if err := g.verified.Close(); err != nil {
			g.log.Error("closing the memory of retained messages", "error", err)
		}
	}
	if removed := g.removed.Load(); removed != nil {
		if err := removed.Close(); err != nil {
			g.log.Error("closing the device ids", "error", err)
		}
	}
	if g.registry != nil {
		if err := g.registry.Close(); err != nil {
			g.log.Error("closing the registry", "error", err)
		}
	}
	if g.waker != nil {
		g.waker.Stop()
	}
	if err := g.audit.Close(stopAuditWithin); err != nil {
		g.log.Error("the end of the audit log is lost", "error", err)
	}
}

func (g *Gateway) flushLog() { g.logs.Drain(g.host.Log) }

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
