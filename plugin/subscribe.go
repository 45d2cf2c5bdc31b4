package plugin

import (
	"bytes"
	"crypto/rand"
	"errors"
	"time"

	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/subscription"
)

// subscribe decides on a subscription. A device may subscribe to its own topics alone, each by its name, and to so many of
// them as package subscription allows; others are not concerned.
func (g *Gateway) subscribe(p *Publish) Decision {
	foreign := g.clientIDs.foreign(p)
	if g.offenders.kicking {
		return g.subscriptionStays(p, foreign)
	}
	if foreign {
		g.refuseForeign(p)
		return Deny
	}
	switch g.confinement.of(p) {
	case ofOthers:
		g.clientIDs.note(p)
		return NotConcerned
	case unknownCertificate:
		g.forbid(p, errUnknownCertificate)
		return Deny
	}
	d := g.ownTopic(p)
	switch {
	case d == Deny:
		g.forbid(p, errSubscription)
		return Deny
	case g.registry.Lookup(p.Identity).Disabled:
		g.decision.now = time.Now()
		g.refuse(p, g.devices.of(g.registry.Lookup(p.Identity)), nil, Disabled, errDisabledSubscription)
		return Deny
	case !p.Certified:
		return d
	case p.OtherIssuer:
		g.forbid(p, errOtherIssuer)
		return Deny
	}
	if err := g.subscriptions.Add(p.Identity, p.Topic, g.levelsBelow(p.Topic), p.connection()); err != nil {
		g.forbid(p, err)
		return Deny
	}
	g.commands.wanted(p.Identity, p.Topic)
	return d
}

// subscriptionStays decides on a subscription that a client has already: the broker asks once more about each while it
// disconnects a client, and ends what is denied. A client that has taken over another one's session leaves it as it is,
// and so does a device that was disabled, which may be enabled again.
func (g *Gateway) subscriptionStays(p *Publish, foreign bool) Decision {
	switch {
	case foreign:
		return Allow
	case g.confinement.of(p) == ofOthers:
		return NotConcerned
	default:
		return g.ownTopic(p)
	}
}

// unsubscribe decides on the end of a subscription. A device may end those to its own topics, also where they exceed what it
// may subscribe to, and under its own client id any. Under another id, though nobody's, it may have taken over the session
// of a client that has no identity, with what that subscribed to.
func (g *Gateway) unsubscribe(p *Publish) Decision {
	switch {
	case g.clientIDs.foreign(p):
		g.refuseForeign(p)
		return Deny
	case g.confinement.of(p) == ofOthers:
		return NotConcerned
	case g.confinement.of(p) == unknownCertificate:
		return Allow
	case !p.Certified || p.OtherIssuer || !g.isOwnTopic(p) && !bytes.Equal(p.ClientID, p.Identity):
		g.forbid(p, errUnsubscription)
		return Deny
	}
	g.subscriptions.Remove(p.Identity, p.Topic, p.connection())
	return Allow
}

// connection returns what package subscription has to know of the connection of p.
func (p *Publish) connection() *subscription.Connection {
	return &subscription.Connection{Number: p.Connection, ClientID: p.ClientID, Places: p.Subscriptions}
}

// isOwnTopic reports whether a topic is one that the gateway publishes to for the client of p.
func (g *Gateway) isOwnTopic(p *Publish) bool {
	level, own := deviceLevel(g.own, p.Topic)
	return own && bytes.Equal(level, p.Identity)
}

// levelsBelow returns how many levels one of the gateway's own topics has below the response topic.
func (g *Gateway) levelsBelow(topic []byte) int {
	for _, own := range g.own {
		if n, ok := own.levelsBelow(topic); ok {
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
	maxSessionQuestions    = 1024
	sessionQuestionsAtOnce = 32
	// sessionQuestionTicks is how many ticks after it was asked a question counts as answered. The broker sends what was
	// published in a tick before the next one.
	sessionQuestionTicks = 2
)

// sessionQuestions finds out of sessions whether they have ended with their connection: before Mosquitto 2.1 no plugin is
// told of an MQTT 5 session. It publishes a message that nobody may read to a topic to which the session is subscribed.
// The broker then asks, for each session that is, whether it may be delivered. Broker's thread only.
type sessionQuestions struct {
	table   *subscription.Table
	message []byte // 16 random ones, so that nobody else publishes it; memory of its own, which C may be given
	waiting []sessionQuestion
}

// A sessionQuestion is one of them.
type sessionQuestion struct {
	device, client string
	asked          uint64 // the tick; 0: not yet
}

func newSessionQuestions(table *subscription.Table) *sessionQuestions {
	q := &sessionQuestions{table: table, message: make([]byte, 16)}
	rand.Read(q.message) // never fails
	return q
}

// add has a session asked for. One for which there is no room counts as still there.
func (q *sessionQuestions) add(device, client []byte) {
	if len(q.waiting) < maxSessionQuestions {
		q.waiting = append(q.waiting, sessionQuestion{device: string(device), client: string(client)})
	}
}

// tick settles what was asked and asks more. publish hands a message to the broker.
func (q *sessionQuestions) tick(tick uint64, publish func(downlink.Publish) error) {
	if len(q.waiting) == 0 {
		return
	}
	kept := q.waiting[:0]
	asked := 0
	for _, s := range q.waiting {
		topic, doubtful := q.table.Doubtful([]byte(s.device), []byte(s.client))
		switch {
		case !doubtful:
			continue
		case s.asked > 0 && tick >= s.asked+sessionQuestionTicks:
			q.table.Gone([]byte(s.device), []byte(s.client))
			continue
		case s.asked == 0 && asked < sessionQuestionsAtOnce:
			asked++
			if publish(downlink.Publish{Topic: topic, Payload: q.message}) != nil {
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
func (q *sessionQuestions) answers(p *Publish) bool {
	if !bytes.Equal(p.Payload, q.message) {
		return false
	}
	q.table.Stays(p.Identity, p.ClientID)
	return true
}
