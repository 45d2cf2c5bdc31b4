package gate

import (
	"bytes"
	"errors"
	"time"

	"mosquitto-bouncer/plugin/subscription"
)

// subscribe decides on a subscription. A device may subscribe only to its own topics, each by its name, and to as many of
// them as package subscription allows; others are not concerned.
func (g *Gate) subscribe(p *Publish) Decision {
	foreign := g.clientIDs.foreign(p)
	if g.offenders.kicking {
		return g.subscriptionStays(p, foreign)
	}
	if foreign {
		g.refuseForeign(p)
		return Deny
	}
	if g.expelImpostor(p) && !p.OtherIssuer {
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
	d, registered := g.ownTopic(p), g.registry.Lookup(p.Identity)
	switch {
	case d == Deny || registered == nil: // removed just now
		g.forbid(p, errSubscription)
		return Deny
	case registered.Disabled:
		g.decision.now = time.Now()
		g.refuse(p, g.devices.of(registered), nil, Disabled, errDisabledSubscription)
		return Deny
	case p.OtherIssuer:
		g.forbid(p, errOtherIssuer)
		return Deny
	}
	if err := g.addSubscription(p); err != nil {
		g.forbid(p, err)
		return Deny
	}
	if p.Certified && g.commands != nil {
		g.commands.Subscribed(p.Identity, p.Topic)
	}
	return d
}

// addSubscription counts a subscription. If there is no room, it asks at once about the device's sessions whose client is
// away, so that those that have ended make room for the next attempt.
func (g *Gate) addSubscription(p *Publish) error {
	holder, below := subscriber(p), g.topics.levelsBelow(p.Topic)
	err := g.sessions.table.Add(holder, p.Topic, below, connection(p))
	if err == nil || errors.Is(err, subscription.ErrBytes) || errors.Is(err, subscription.ErrLevels) {
		return err
	}
	g.sessions.askOf(holder)
	if !g.sessions.forget(time.Now()) {
		return err
	}
	return g.sessions.table.Add(holder, p.Topic, below, connection(p))
}

// subscriptionStays decides on a subscription that a client has already: while the broker disconnects a client, it asks about
// each of them again, and ends those that are denied. The subscriptions of a session that the client has taken over stay, and
// so do those of a disabled device, which may be enabled again.
func (g *Gate) subscriptionStays(p *Publish, foreign bool) Decision {
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
// may subscribe to. When its client id is its user name, it may end any. Under another id, even if no identity has it, the
// device may have taken over the session of a client without an identity, with that client's subscriptions.
func (g *Gate) unsubscribe(p *Publish) Decision {
	switch {
	case g.clientIDs.foreign(p):
		g.refuseForeign(p)
		return Deny
	case g.confinement.of(p) == ofOthers:
		return NotConcerned
	case g.confinement.of(p) == unknownCertificate:
		return Allow
	case g.expelImpostor(p) && !p.OtherIssuer:
		g.refuseForeign(p)
		return Deny
	case !p.Certified || p.OtherIssuer || !g.topics.isOwnOf(p) && !bytes.Equal(p.ClientID, p.Identity):
		g.forbid(p, errUnsubscription)
		return Deny
	}
	g.sessions.table.Remove(p.Identity, p.Topic, connection(p))
	return Allow
}

// subscriber returns the name of the client of p in package subscription: a client that uses a device's name without its
// certificate takes none of the device's room.
func subscriber(p *Publish) []byte {
	if p.Certified {
		return p.Identity
	}
	return uncertified(p.Identity)
}

// uncertified is the name for all clients that use a device's name without its certificate. No device id begins with this byte.
func uncertified(device []byte) []byte { return append([]byte("\x00"), device...) }

// connection returns what package subscription needs to know about the connection of p.
func connection(p *Publish) *subscription.Connection {
	return &subscription.Connection{Number: p.Connection, ClientID: p.ClientID, Places: p.Subscriptions}
}

var (
	errSubscription         = errors.New("a device may subscribe only to its own response, command and rejected topics")
	errUnsubscription       = errors.New("without its user name as client id, a device may unsubscribe only from its own response, command and rejected topics, and only with its certificate")
	errDisabledSubscription = errors.New("a disabled device may not subscribe")
)
