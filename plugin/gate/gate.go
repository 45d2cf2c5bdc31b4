// Package gate decides on everything that a client does: what it publishes, what it subscribes to, and what is delivered to
// it. The whole decision is made here, on the broker's thread, without waiting for anything.
//
//	access      Access: the broker's question before every publish, subscription and delivery
//	message     Message: the broker's event for every publish, and what acceptance consists of
//	verdict     judge: the checks on an envelope, in order, as a pure function
//	pending     the verdict of Access, kept until Message is called
//	redelivery  which repeated message is not a replay
//	refusal     what follows from a refusal: counts, notice to the device, log line, audit record, disconnection
//	confinement, clientid, subscribe   what a client may do on other topics, under which client id, and how often
//	retain, relay, unsent              messages that the broker keeps, and those that the gateway publishes itself
//	tick        what is done between the broker's questions
//
// Other files have the terms of a decision: what a client is about to do (Action, Publish), on which topics (Topic, Topics),
// the answers (Decision, Disposition) and their reasons (Reason).
package gate

import (
	"log/slog"
	"time"
	"unsafe"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/mailbox"
	"mosquitto-bouncer/plugin/mqtt"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/retained"
	"mosquitto-bouncer/plugin/sampler"
	"mosquitto-bouncer/plugin/subscription"
)

// How many message ids are forgotten at most in one call of Message and of Tick: more than come in, so that the memory
// keeps up, and few enough to take microseconds.
const (
	expirePerMessage = 4
	expirePerTick    = 256
)

// A Broker is what the gate needs of the broker. Broker's thread only.
type Broker interface {
	// Log writes one line to the broker's log.
	Log(level slog.Level, line string)
	// Publish hands a message to the broker for the clients that subscribe to its topic.
	Publish(mqtt.Message) error
	// Kick ends a client's connection, without its last will. Not while the client is being served.
	Kick(clientID string)
	// KickUser ends the connections of all clients with a user name, without their last wills. As Kick.
	KickUser(username string)
	// Fingerprint returns the SHA-256 of the certificate that a client presented, false where it has none. Only with the
	// Connection of the Publish that the broker presents.
	Fingerprint(connection uintptr) ([32]byte, bool)
	// SetStrangers says how to recognise clients whose certificates do not belong to a registered device.
	SetStrangers(Strangers)
	// Traceparent returns the value of the user property of this name, "" if there is none or it is longer than a valid one.
	// properties are Publish.Properties.
	Traceparent(properties unsafe.Pointer) string
	// Properties returns the part of Publish.Properties that subscribers see, for mqtt.Message; nil: out of memory.
	Properties(properties unsafe.Pointer) []byte
}

// An Outbox keeps accepted messages. Broker's thread only; it waits for nothing.
type Outbox interface {
	// Admit returns an error where there is no room for a message of a device, of size bytes. It takes no room.
	Admit(device string, size int) error
	// Append keeps a message that Admit has found room for. With an error it is not kept. It copies what it keeps.
	Append(*journal.Accepted) error
}

// Commands keeps the devices' answers to commands, as an Outbox keeps messages. Broker's thread only.
type Commands interface {
	Outbox
	// Subscribed notes that a device has subscribed to a topic.
	Subscribed(device, topic []byte)
	// Used notes which of its secrets a device has signed with. It reports whether it could.
	Used(d *registry.Device, secret int) bool
}

// Responses keeps what a device wants to have on the response to a message, and forgets it.
type Responses interface {
	Keep(device, messageID string, correlation, topic []byte)
	Drop(device, messageID string)
}

// Options are what a Gate needs. All are required except Commands and Audit.
type Options struct {
	Broker    Broker
	Topics    *Topics
	Registry  *registry.Registry
	Removed   *former.Set      // device ids that were registered once
	Seen      *replay.Set      // the ids of the messages accepted before
	Retained  *retained.Memory // of verified retained messages
	Tolerance time.Duration    // of timestamps, in whole seconds
	Outbox    Outbox
	Responses Responses
	Commands  Commands // nil: without an HTTP listener there are none
	// Forgotten is called after Seen has expired ids, with the time in seconds since 1970.
	Forgotten func(now int64)
	// BeforePublish takes what other goroutines have left for the broker's thread. It is called before a publish is decided on.
	BeforePublish func()
	// Refused is called for each message that the gate published itself and the broker did not accept.
	Refused func()
	// Wake makes the broker's thread call Tick soon. Any goroutine may call it; it returns at once.
	Wake func()

	// PublishesBeforeTick: a round of the broker's event loop begins with publishing and a TICK (Mosquitto 2.1). Else a TICK
	// is at its end.
	PublishesBeforeTick bool
	// UserNameIsClientID: the broker uses the user name of a client as its client id.
	UserNameIsClientID bool

	Audit   *audit.Log       // nil: none
	Sampler *sampler.Sampler // of every log line that a client can provoke
	Panics  *crash.Reporter
	Log     *slog.Logger
}

// Settings are what a reload may change.
type Settings struct {
	MaxBytes         int        // of a message
	Rate             rate.Limit // messages a second of each device; rate.Inf: no limit
	Burst            int
	MaxBadSignatures int // of a device in a minute; 0: any number

	// DenyUnknown: clients with certificates that do not belong to a registered device may do nothing, unless the common name
	// is one of KnownCertificates.
	DenyUnknown       bool
	KnownCertificates []string

	// NamesAreCertificates: every listener requires certificates and takes user names from them, or it is not known.
	NamesAreCertificates bool
	// AsksSessions: the broker can be made to show which sessions exist. It is false where the broker has a bridge, which would
	// get the questions, and with per_listener_settings, where the broker does not ask about sessions whose client is away.
	AsksSessions bool
}

// A Gate decides. Its methods belong to the broker's thread unless they say otherwise, and wait for nothing.
type Gate struct {
	broker        Broker
	topics        *Topics
	registry      *registry.Registry
	outbox        Outbox
	commands      Commands // nil: none
	responses     Responses
	beforePublish func()
	forgotten     func(now int64)
	refused       func()
	panics        *crash.Reporter
	log           *slog.Logger

	decision    circumstances
	pending     pendingVerdict
	record      journal.Accepted // what accept appends
	devices     devices
	confinement confinement
	clientIDs   clientIDs
	offenders   offenders
	sessions    *sessionQuestions
	retained    retainedMessages
	relay       relay
	unsent      unsent
	refusals    refusals
	revoked     *mailbox.Box[string] // devices whose clients are to be disconnected
	questions   questions
	clock       clock
	figures     figures
	changed     func() // see OnIdentityChange; nil: not set yet
}

// New returns a Gate, with settings.
func New(o Options, s Settings) *Gate {
	g := &Gate{
		broker: o.Broker, topics: o.Topics, registry: o.Registry, outbox: o.Outbox, commands: o.Commands, responses: o.Responses,
		beforePublish: o.BeforePublish, forgotten: o.Forgotten, refused: o.Refused, panics: o.Panics, log: o.Log,

		decision: circumstances{
			tolerance: int64(o.Tolerance / time.Second), decoder: new(envelope.Decoder), seen: o.Seen, userNameIsClientID: o.UserNameIsClientID,
		},
		devices:     devices{limit: rate.Inf},
		confinement: confinement{registry: o.Registry, removed: o.Removed},
		sessions:    newSessionQuestions(subscription.New()),
		retained:    retainedMessages{verified: o.Retained},
		relay:       newRelay(),
		unsent:      unsent{publishesBeforeTick: o.PublishesBeforeTick},
		refusals:    refusals{log: refusalLog{sampler: o.Sampler}, audit: o.Audit},
		revoked:     mailbox.New[string](maxRevoked),
		questions:   newQuestions(o.Wake),
		clock:       clock{started: time.Now()},
	}
	g.clientIDs.isDevice = g.confinement.isDevice
	g.decision.decoder.MessageID = func(id [16]byte) {
		if d := g.pending.device; d != nil {
			g.decision.seen.Prefetch(d.registered.Serial, id)
		}
	}
	g.Configure(s)
	return g
}

// Configure puts settings in force.
func (g *Gate) Configure(s Settings) {
	g.decision.maxBytes = s.MaxBytes
	g.devices.setLimit(s.Rate, s.Burst)
	g.refusals.maxBad, g.decision.keys.maxBad = s.MaxBadSignatures, s.MaxBadSignatures
	g.sessions.unasked = !s.AsksSessions
	g.confinement.configure(s.DenyUnknown, s.KnownCertificates, s.NamesAreCertificates)
	g.settleStrangers()
}

// OnIdentityChange sets a function that is called, from another goroutine, after every change of the registry and of [acl], and
// when another client id becomes an identity's. Only then can a user name become a device's, or a client id another
// identity's. Until then a caller may reuse the answer NotConcerned to a Read, and to a Write to a topic that Topics does not
// name.
func (g *Gate) OnIdentityChange(changed func()) {
	g.changed = changed
	g.registry.OnChange(changed)
	g.clientIDs.changed = changed
}

// Topics returns the topics that the gate decides on.
func (g *Gate) Topics() *Topics { return g.topics }

// SessionQuestion returns the payload of the messages that no client may read. It stays the same while the gateway runs.
func (g *Gate) SessionQuestion() []byte { return g.sessions.message }

// Share notes that one more plugin line of the broker's configuration uses the gateway: each of them calls Tick in each TICK.
func (g *Gate) Share() { g.unsent.sharers++ }
