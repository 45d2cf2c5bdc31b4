package plugin

import (
	"bytes"
	"crypto/rand"
	"errors"
	"time"

	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/subscription"
)

// subscribe decides on a subscription. A device may subscribe to its own topics alone, each by its name, and to so many of
// them as package subscription allows; others are not concerned.
func (g *Gateway) subscribe(p *gate.Publish) gate.Decision {
	foreign := g.clientIDs.foreign(p)
	if g.offenders.kicking {
		return g.subscriptionStays(p, foreign)
	}
	if foreign {
		g.refuseForeign(p)
		return gate.Deny
	}
	if g.expelImpostor(p) && !p.OtherIssuer {
		g.refuseForeign(p)
		return gate.Deny
	}
	switch g.confinement.of(p) {
	case ofOthers:
		g.clientIDs.note(p)
		return gate.NotConcerned
	case unknownCertificate:
		g.forbid(p, errUnknownCertificate)
		return gate.Deny
	}
	d, registered := g.ownTopic(p), g.registry.Lookup(p.Identity)
	switch {
	case d == gate.Deny || registered == nil: // removed at this moment
		g.forbid(p, errSubscription)
		return gate.Deny
	case registered.Disabled:
		g.decision.now = time.Now()
		g.refuse(p, g.devices.of(registered), nil, gate.Disabled, errDisabledSubscription)
		return gate.Deny
	case p.OtherIssuer:
		g.forbid(p, errOtherIssuer)
		return gate.Deny
	}
	if err := g.addSubscription(p); err != nil {
		g.forbid(p, err)
		return gate.Deny
	}
	if p.Certified {
		g.commands.Subscribed(p.Identity, p.Topic)
	}
	return d
}

// addSubscription counts a subscription. If there is no room, the device's sessions that are away are asked for at once, so
// that those which have ended since make room for the next attempt.
func (g *Gateway) addSubscription(p *gate.Publish) error {
	holder, below := subscriber(p), g.levelsBelow(p.Topic)
	err := g.subscriptions.Add(holder, p.Topic, below, connection(p))
	if err == nil || errors.Is(err, subscription.ErrBytes) || errors.Is(err, subscription.ErrLevels) {
		return err
	}
	g.sessionQuestions.askOf(holder)
	if !g.sessionQuestions.forget(time.Now()) {
		return err
	}
	return g.subscriptions.Add(holder, p.Topic, below, connection(p))
}

// subscriptionStays decides on a subscription that a client has already: the broker asks once more about each while it
// disconnects a client, and ends what is denied. A client that has taken over another one's session leaves it as it is,
// and so does a device that was disabled, which may be enabled again.
func (g *Gateway) subscriptionStays(p *gate.Publish, foreign bool) gate.Decision {
	switch {
	case foreign:
		return gate.Allow
	case g.confinement.of(p) == ofOthers:
		return gate.NotConcerned
	default:
		return g.ownTopic(p)
	}
}

// unsubscribe decides on the end of a subscription. A device may end those to its own topics, also where they exceed what it
// may subscribe to, and under its own client id any. Under another id, though nobody's, it may have taken over the session
// of a client that has no identity, with what that subscribed to.
func (g *Gateway) unsubscribe(p *gate.Publish) gate.Decision {
	switch {
	case g.clientIDs.foreign(p):
		g.refuseForeign(p)
		return gate.Deny
	case g.confinement.of(p) == ofOthers:
		return gate.NotConcerned
	case g.confinement.of(p) == unknownCertificate:
		return gate.Allow
	case g.expelImpostor(p) && !p.OtherIssuer:
		g.refuseForeign(p)
		return gate.Deny
	case !p.Certified || p.OtherIssuer || !g.isOwnTopic(p) && !bytes.Equal(p.ClientID, p.Identity):
		g.forbid(p, errUnsubscription)
		return gate.Deny
	}
	g.subscriptions.Remove(p.Identity, p.Topic, connection(p))
	return gate.Allow
}

// subscriber returns under which name package subscription has the client of p: who bears a device's name without its
// certificate takes none of the device's room.
func subscriber(p *gate.Publish) []byte {
	if p.Certified {
		return p.Identity
	}
	return uncertified(p.Identity)
}

// uncertified is the name of all clients that bear a device's without its certificate. No device id begins so.
func uncertified(device []byte) []byte { return append([]byte("\x00"), device...) }

// connection returns what package subscription has to know of the connection of p.
func connection(p *gate.Publish) *subscription.Connection {
	return &subscription.Connection{Number: p.Connection, ClientID: p.ClientID, Places: p.Subscriptions}
}

// isOwnTopic reports whether a topic is one that the gateway publishes to for the client of p.
func (g *Gateway) isOwnTopic(p *gate.Publish) bool {
	level, own := gate.DeviceLevel(g.own, p.Topic)
	return own && bytes.Equal(level, p.Identity)
}

// levelsBelow returns how many levels one of the gateway's own topics has below the response topic.
func (g *Gateway) levelsBelow(topic []byte) int {
	for _, own := range g.own {
		if n, ok := own.LevelsBelow(topic); ok {
			return n
		}
	}
	return 0
}

var (
	errSubscription         = errors.New("a device may subscribe to its own response, command and rejected topics alone")
	errUnsubscription       = errors.New("a device may unsubscribe from its own response, command and rejected topics alone, with its certificate, unless its client id is its user name")
	errDisabledSubscription = errors.New("a disabled device may not subscribe")
)

// Bounds of the questions about sessions.
const (
	maxSessionQuestions    = 1 << 16
	sessionQuestionsAtOnce = 32
	// sessionQuestionTicks is how many ticks after it was asked a question counts as answered. The broker sends what was
	// published in a tick before the next one.
	sessionQuestionTicks = 2
	// sessionQuestionEvery is after what time a session is asked for again that was still there.
	sessionQuestionEvery = 5 * time.Second
	// unaskedSessionAge is how long a session that is away counts where the broker cannot be asked.
	unaskedSessionAge = time.Hour
)

// sessionQuestions finds out of sessions that are away whether they have ended: no plugin is told when one expires, and
// before Mosquitto 2.1 of an MQTT 5 session not even whether it ended with its connection. It publishes a message that nobody
// may read to a topic to which the session is subscribed. The broker then asks, for each session that is, whether it may be
// delivered. Where it cannot be asked so, a session that is away counts for some time and is then forgotten. Broker's thread
// only.
type sessionQuestions struct {
	table   *subscription.Table
	message []byte                           // 16 random ones, so that nobody else publishes it; memory of its own, which C may be given
	waiting []sessionQuestion                // to be asked or answered
	later   []sessionQuestion                // the earliest first
	listed  map[subscription.SessionKey]bool // those in waiting (true) and in later alone
	unasked bool                             // the broker cannot be asked
}

// A sessionQuestion is one of them.
type sessionQuestion struct {
	session subscription.SessionKey
	asked   uint64    // the tick; 0: not yet
	due     time.Time // when it is asked for again, or forgotten
}

func newSessionQuestions(table *subscription.Table) *sessionQuestions {
	q := &sessionQuestions{table: table, message: make([]byte, 16), listed: make(map[subscription.SessionKey]bool)}
	rand.Read(q.message) // never fails
	return q
}

// add has a session asked for now, if it may have ended with its connection, and from time to time. When there is no room
// for it, it counts as still there until its device asks for room again.
func (q *sessionQuestions) add(session subscription.SessionKey, end subscription.End) {
	waiting, listed := q.listed[session]
	now := !q.unasked && end == subscription.MayStay
	switch {
	case waiting, listed && !now, !listed && len(q.listed) >= maxSessionQuestions:
	case now:
		q.listed[session] = true
		q.waiting = append(q.waiting, sessionQuestion{session: session})
	default:
		q.postpone(session, time.Now())
	}
}

func (q *sessionQuestions) postpone(session subscription.SessionKey, now time.Time) {
	after := sessionQuestionEvery
	if q.unasked {
		after = unaskedSessionAge
	}
	if len(q.later) >= maxSessionQuestions {
		delete(q.listed, session)
		return
	}
	q.listed[session] = false
	q.later = append(q.later, sessionQuestion{session: session, due: now.Add(after)})
}

// askOf has all sessions of a device asked for now that are away.
func (q *sessionQuestions) askOf(device []byte) {
	for _, session := range q.table.Away(device) {
		if !q.listed[session] { // not waiting
			q.table.Doubt(session)
			q.add(session, subscription.MayStay)
		}
	}
}

// forget forgets the sessions that have been away for long, where the broker cannot be asked. It reports whether there were
// any.
func (q *sessionQuestions) forget(now time.Time) (any bool) {
	for q.unasked && len(q.later) > 0 && !now.Before(q.later[0].due) {
		session := q.later[0].session
		q.later = q.later[1:]
		if q.table.Doubt(session) {
			q.table.Gone(session)
			any = true
		}
		delete(q.listed, session)
	}
	return any
}

// tick settles what was asked and asks more. publish hands a message to the broker.
func (q *sessionQuestions) tick(tick uint64, publish func(downlink.Publish) error) {
	if len(q.waiting)+len(q.later) == 0 {
		return
	}
	now := time.Now()
	q.forget(now)
	for !q.unasked && len(q.later) > 0 && !now.Before(q.later[0].due) && len(q.waiting) < 2*sessionQuestionsAtOnce {
		session := q.later[0].session
		q.later = q.later[1:]
		if waiting, listed := q.listed[session]; listed && !waiting {
			q.table.Doubt(session)
			q.listed[session] = true
			q.waiting = append(q.waiting, sessionQuestion{session: session})
		}
	}
	kept := q.waiting[:0]
	asked := 0
	for _, s := range q.waiting {
		topic, away := q.table.Doubtful(s.session)
		switch {
		case !away: // it is in use again, or has ended
			delete(q.listed, s.session)
			continue
		case topic == "":
			q.postpone(s.session, now)
			continue
		case s.asked > 0 && tick >= s.asked+sessionQuestionTicks:
			q.table.Gone(s.session)
			delete(q.listed, s.session)
			continue
		case s.asked == 0 && asked < sessionQuestionsAtOnce:
			asked++
			if publish(downlink.Publish{Topic: topic, Payload: q.message}) != nil {
				q.postpone(s.session, now)
				continue
			}
			s.asked = tick
		}
		kept = append(kept, s)
	}
	clear(q.waiting[len(kept):])
	q.waiting = kept
}

// answers reports whether a delivery is the answer to a question, which nobody may read, and takes note of it.
func (q *sessionQuestions) answers(p *gate.Publish) bool {
	if !bytes.Equal(p.Payload, q.message) {
		return false
	}
	q.table.Stays(p.Identity, p.ClientID)
	q.table.Stays(uncertified(p.Identity), p.ClientID)
	return true
}
