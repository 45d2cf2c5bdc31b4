package plugin

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/backendurl"
	"mosquitto-bouncer/plugin/brokerlog"
	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/fleet"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/order"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/retained"
	"mosquitto-bouncer/plugin/sampler"
	"mosquitto-bouncer/plugin/writable"
)

// Bounds of the implementation.
const (
	// maxRemembered is how many message ids the replay memory holds; when it is full, publishes are refused as
	// overloaded. At 64 bytes an id it takes 256 MiB. With the default tolerance, a fleet reaches this only with 7,000 messages
	// a second.
	maxRemembered = 1 << 22
	// maxClears is how many topics one order may clear: of each device the gated ones, those of the gateway, and that of the
	// answers to commands.
	maxClears = order.MaxNames * (config.MaxTopics + 4)
	// stopWithin is how long Stop waits for the backend to take what is still queued. The rest is delivered after the
	// next start.
	stopWithin = 1500 * time.Millisecond
	// stopAuditWithin is how long it waits for the audit log.
	stopAuditWithin = time.Second
)

// A starter opens the parts of a Gateway one after the other, and keeps what only the start needs.
type starter struct {
	*Gateway
	config  *config.Config
	topics  *gate.Topics
	sampler *sampler.Sampler
	changes registryChanges
	seen    *replay.Set

	waker     *downlink.Waker
	down      *downlink.Dispatcher
	responses *downlink.Responses
	commands  *downlink.Commands // nil: without an HTTP listener there are none
	clearer   *downlink.Clearer
	removed   *former.Set
	verified  *retained.Memory
	sink      *webhook.Sink // nil: messages go to the fleet
	fleet     *fleet.Fleet  // nil: there is none
	orders    *orders
	server    atomic.Pointer[httpd.Server] // nil: none; it serves before it is set here
	writable  *writable.Checks
	checks    []func() error // each says what is wrong, for the health check; any goroutine
}

func newStarter(configFile string, c *config.Config, host Host) *starter {
	logs, lines := brokerlog.NewQueue(), sampler.New()
	log := slog.New(lines.Handler(logs))
	s := &starter{
		Gateway:  &Gateway{host: host, logs: logs, log: log, panics: crash.NewReporter(log)},
		config:   c,
		topics:   gate.NewTopics(topicConfig(c)),
		sampler:  lines,
		seen:     replay.New(maxRemembered, c.Publish.Tolerance),
		writable: writable.New(slog.New(logs)),
	}
	s.closers.log = log
	s.broker = &brokerSettings{host: host, file: configFile, log: log, others: c.ACL.Others}
	return s
}

// start opens everything. What it has opened when it fails is closed by the closers.
func (s *starter) start() error {
	for _, step := range []func() error{
		s.openAudit, s.openRegistry, s.openDownlink,
		s.openOutbox, // which has the lock on the state directory: nothing before it writes there
		s.openRemoved, s.openCommands, s.openRetained, s.openGate, s.watch, s.serve,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	s.PublishUnsent(s.unsent())
	s.log.Info("ready", "version", Version, "config", s.broker.file, "devices", s.registry.Len(),
		"topics", s.config.Publish.Topics, "backend", backendurl.WithoutQuery(destination(s.config)))
	s.audit.Add(audit.Record{Event: audit.Start, Version: Version})
	return nil
}

func (s *starter) openAudit() (err error) {
	if s.config.Audit.File == "" {
		return nil
	}
	if s.audit, err = audit.Open(auditOptions(s.config), s.log); err != nil {
		return fmt.Errorf("%s: %w", s.config.Where("audit.file"), err)
	}
	s.closers.add("the audit log; its last records are lost", func() error { return s.audit.Close(stopAuditWithin) })
	return nil
}

// openRegistry reads which devices are registered.
func (s *starter) openRegistry() error {
	c := s.config
	// From 2.1 on the broker's thread sleeps between a tick and the sending of what was published in it.
	rounds := uint64(1)
	if s.host.Is2_1() {
		rounds = 2
	}
	s.waker = downlink.NewWaker(s.host.Wake, rounds, s.log)
	s.closers.do("the waker", s.waker.Stop) // after the registry, which wakes
	key, err := registryKey(c)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Where("registry.key_file"), err)
	}
	if s.registry, err = registry.Open(c.Database, s.log, registry.WithKey(key)); err != nil {
		return fmt.Errorf("%s: %w", c.Where("database"), err)
	}
	s.closers.add("the registry", s.registry.Close)
	s.changes.audit = s.audit
	s.registry.OnChanges(s.changes.note)
	return nil
}

// openDownlink makes the dispatcher to the broker's thread, and what sends responses to the devices.
func (s *starter) openDownlink() error {
	c := s.config
	s.down = downlink.NewDispatcher(s.host, s.waker.Wake, s.log)
	s.responses = downlink.NewResponses(downlink.ResponseOptions{
		Topic: c.Response.Topic, MaxAge: c.Response.MaxAge, Wrap: c.Response.Wrap, Reserved: s.topics.Reserved, Log: s.log,
	}, s.down)
	return nil
}

// respond sends the backend's response to one message to the device; the forwarder's goroutines call it.
func (s *starter) respond(r forward.Response) {
	s.responses.Send(downlink.Response{
		Device: r.Message.DeviceID, MessageID: r.Message.MessageID, Accepted: r.Message.FirstAcceptedAt, Status: r.Status, Body: r.Body,
	})
}

// openOutbox makes the sink for the backend, and opens the outbox. Some files are opened after it, because it locks the state
// directory, and closed after it, because the registry and orders write to them until then.
func (s *starter) openOutbox() (err error) {
	sink, err := openSink(s)
	if err != nil {
		return err
	}
	s.closers.add("the device ids", func() error {
		if s.removed == nil {
			return nil
		}
		return s.removed.Close()
	})
	s.closers.add("the memory of retained messages", func() error {
		if s.verified == nil {
			return nil
		}
		return s.verified.Close()
	})
	s.closers.do("orders", func() {
		if s.orders != nil {
			s.orders.stop()
		}
	})
	if s.outbox, err = openOutbox(s, sink); err != nil {
		return err
	}
	s.closers.do("the outbox", func() {
		s.responses.Stop() // workers may wait for the broker's thread, which takes no more responses
		s.outbox.Close(stopWithin)
	})
	s.checks = append(s.checks, s.outbox.Checks()...)
	return s.startFleet()
}

// openCommands starts to send commands to devices, if there is a listener to post them to, and moves devices' answers from
// the journal into the store of commands.
func (s *starter) openCommands() (err error) {
	c := s.config
	var answers []downlink.Answer
	for _, a := range s.outbox.Answers() {
		answers = append(answers, downlink.Answer(a))
	}
	if c.HTTP.Listen == "" {
		downlink.DropAnswers(answers, s.outbox.Journal(), s.log)
		return nil
	}
	s.commands, err = downlink.StartCommands(downlink.CommandOptions{
		StateDir: c.StateDir, Topic: c.Command.Topic, Registry: s.registry, Keys: c.Command.Keys, Journal: s.outbox.Journal(), Log: s.log,
		Changed: func(c command.Command) {
			s.audit.Add(audit.Record{Event: audit.Command, Device: c.Device, MessageID: c.ID, Change: string(c.State)})
		},
	}, s.down)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Where("state_dir"), err)
	}
	s.closers.add("the store of commands", s.commands.Close)
	s.checks = append(s.checks, s.commands.Health)
	s.commands.Restore(answers)
	return nil
}

// openGate reads the broker's configuration, and makes the gate with what it needs of the others.
func (s *starter) openGate() error {
	if err := useIssuers(s.host, s.config); err != nil {
		return err
	}
	s.broker.read()
	s.broker.settleOthers()
	o := gate.Options{
		Broker:        s.host,
		Topics:        s.topics,
		Registry:      s.registry,
		Removed:       s.removed,
		Seen:          s.seen,
		Retained:      s.verified,
		Tolerance:     s.config.Publish.Tolerance,
		Outbox:        s.outbox,
		Responses:     s.responses,
		Forgotten:     s.outbox.NoteForgotten,
		BeforePublish: func() { s.tasks.beforePublish() },
		Refused:       s.down.Refused,
		Wake:          s.waker.Wake,

		PublishesBeforeTick: s.host.Is2_1(),
		UserNameIsClientID:  s.broker.userNameIsClientID(),

		Audit:   s.audit,
		Sampler: s.sampler,
		Panics:  s.panics,
		Log:     s.log,
	}
	if s.commands != nil { // a nil pointer would make an interface that is not nil
		o.Commands = s.commands
	}
	s.Gate = gate.New(o, gateSettings(s.config, s.broker))
	s.closers.do("what the broker has not published", func() { s.SaveUnsent(s.unsent()) })
	s.changes.connect(func(changes []registry.Change) {
		if s.Revoke(changes) {
			s.waker.Wake()
		}
		s.commands.CredentialsChanged(changes)
	})
	return s.broker.check(len(s.config.Publish.Issuers) > 0)
}

func (s *starter) unsent() unsentFile {
	return unsentFile{filepath.Join(s.config.StateDir, journal.DirName), s.outbox.Journal()}
}

// watch starts what watches files: the stores, bouncer.toml, the directory of orders. Then everything that the tasks of the
// broker's thread need is there.
func (s *starter) watch() error {
	watchStores(s.writable, s.config.StateDir, s.outbox, s.commands, s.audit)
	s.closers.do("the checks of the stores", s.writable.Stop)
	reader := newConfigReader(s.broker.file, s.waker.Wake, s.log)
	s.closers.do("reload", reader.stop)
	s.reloading = &reloading{
		host: s.host, reader: reader, broker: s.broker, config: s.config, gate: s.Gate, registry: s.registry, commands: s.commands, sink: s.sink,
		audit: s.audit, log: s.log,
	}
	s.tasks = tasks{
		{inTick: s.Gate.Tick},
		{inTick: func(time.Time) { s.waker.Tick() }},
		{always: s.reloading.take},
		{always: s.outbox.Requeue},
		{always: s.down.Drain},
		{always: s.AnswerCounts},
		{always: s.flushLog},
		{inTick: func(time.Time) { s.outbox.Tick() }},
		{inTick: s.Housekeep},
	}
	s.orders = &orders{
		dir: filepath.Join(s.config.StateDir, order.DirName), topics: s.topics, registry: s.registry, removed: s.removed,
		clearer: s.clearer, audit: s.audit, log: s.log,
	}
	if err := s.orders.start(); err != nil {
		s.orders = nil
		return stateError(s.config, err)
	}
	return nil
}
