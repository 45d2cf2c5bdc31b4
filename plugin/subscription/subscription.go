// Package subscription bounds how many topics each device subscribes to, over all its sessions.
//
// A broker keeps every subscription in memory, each level of its topic apart. A device may choose topics of its own below
// its response topic, so without a bound it takes as much of the broker's memory as it likes.
package subscription

import (
	"errors"
	"hash/maphash"
	"math/bits"
	"slices"
)

// The bounds of one device.
const (
	// MaxFilters is how many different topics it may be subscribed to, over all its sessions.
	MaxFilters = 16
	// MaxSessions is how many sessions of it may hold subscriptions.
	MaxSessions = 64
	// MaxBytes is the greatest length of a topic that is subscribed to.
	MaxBytes = 256
	// MaxLevelsBelow is how many levels such a topic may have below the response topic.
	MaxLevelsBelow = 4
)

// Why a subscription is refused. Each names its bound, for the log.
var (
	ErrFilters  = errors.New("the device is subscribed to 16 topics already, over all its sessions; it has to unsubscribe from one first")
	ErrSessions = errors.New("64 sessions of the device hold subscriptions already; they end with their expiry")
	ErrBytes    = errors.New("the topic is longer than 256 bytes")
	ErrLevels   = errors.New("the topic has more than 4 levels below the response topic")
)

// A Connection is the connection over which a device subscribes or unsubscribes.
type Connection struct {
	// Number identifies a connection among those that exist at the same time.
	Number uintptr
	// ClientID names its session.
	ClientID []byte
	// Places is the length of the broker's list of the session's subscriptions. It grows with a subscription that finds no
	// free place. Mosquitto 2.0 never shortens it, 2.1 does; 0: the session has none, or has had none.
	Places int
}

// An End says what happens to the session when its connection ends.
type End int

// The ends.
const (
	MayStay End = iota // not known: MQTT 5 before Mosquitto 2.1
	Stays
	Ends
)

// A Table holds the subscriptions of all devices. It takes up to some 6 KiB for each device that has any. The broker's
// thread only; the zero value is not usable.
//
// Sessions that the broker restored at its start, or that are older than the plugin, are not known by their topics. How
// many they have shows when their device subscribes again, and counts then; in each such session one topic more than the
// bound may slip through.
type Table struct {
	seed    maphash.Seed
	devices map[string]*holder
}

// A holder is a device that is subscribed to something.
type holder struct {
	filters  [MaxFilters]string // "": a free place
	sessions []session
}

// A session is one session of a device.
type session struct {
	client     uint64  // hash of the client id
	connection uintptr // 0: it has ended
	filters    uint16  // a bit for each of holder.filters
	unknown    int     // subscriptions that the broker restored and that have not been named since
	places     int     // Connection.Places when it was looked at last
	free       int     // how many of them are free
	added      bool    // a topic was added since that was not known
	trusted    bool    // and there was room for it only if it is one that the broker restored
	betrayed   bool    // it was not
	doubtful   bool    // the connection has ended, and perhaps the session with it
}

// New returns an empty table.
func New() *Table {
	return &Table{seed: maphash.MakeSeed(), devices: make(map[string]*holder)}
}

// Add counts a subscription, unless it is counted already. levelsBelow is how many levels the topic has below the response
// topic, 0 for one that is not below it. The error says which bound the subscription would exceed; then it is not counted.
func (t *Table) Add(device, filter []byte, levelsBelow int, c *Connection) error {
	if levelsBelow > MaxLevelsBelow {
		return ErrLevels
	}
	if len(filter) > MaxBytes {
		return ErrBytes
	}
	h := t.devices[string(device)]
	if h == nil {
		h = new(holder)
	}
	s := h.session(t.client(c.ClientID))
	if s == nil {
		if len(h.sessions) == MaxSessions {
			h.drop((*session).isAway)
		}
		if len(h.sessions) == MaxSessions {
			return ErrSessions
		}
		h.sessions = append(h.sessions, session{client: t.client(c.ClientID), connection: c.Number, unknown: c.Places, places: c.Places})
		s = &h.sessions[len(h.sessions)-1]
	}
	defer t.tidy(device, h)
	s.look(c)
	used := h.used()
	place := h.place(filter, used)
	switch {
	case place >= 0 && s.filters&(1<<place) != 0:
		return nil // again
	case s.places > MaxFilters:
		return ErrFilters
	case place < 0:
		if bits.OnesCount16(used)+h.unknown() >= MaxFilters {
			if s.unknown == 0 || s.free > 0 || s.betrayed || used == 1<<MaxFilters-1 {
				return ErrFilters
			}
			s.trusted = true // the broker's list tells next time
		}
		place = bits.TrailingZeros16(^used)
		h.filters[place] = string(filter)
	}
	s.filters |= 1 << place
	s.added = true
	t.devices[string(device)] = h
	return nil
}

// Remove frees the place of a subscription that has ended. One that is not known frees one of those which the broker has
// restored.
func (t *Table) Remove(device, filter []byte, c *Connection) {
	h := t.devices[string(device)]
	if h == nil {
		return
	}
	s := h.session(t.client(c.ClientID))
	if s == nil {
		return
	}
	s.look(c)
	place := h.place(filter, h.used())
	switch {
	case place >= 0 && s.filters&(1<<place) != 0:
		s.filters &^= 1 << place
		s.free++
	case s.unknown > 0:
		s.unknown--
		s.free++
	}
	t.tidy(device, h)
}

// A SessionKey names a session of a device.
type SessionKey struct {
	device string
	client uint64
}

// Ended notes the end of a connection, and frees what its session held if that has ended too. If the session may continue
// and its device holds much, ask is true: the broker does not say when such a session ends, so it has to be asked now and
// then.
func (t *Table) Ended(device, clientID []byte, connection uintptr, end End) (key SessionKey, ask bool) {
	h := t.devices[string(device)]
	if h == nil {
		return key, false
	}
	s := h.session(t.client(clientID))
	if s == nil || s.connection != connection {
		return key, false // another one has the client id now, or the broker never let this one in
	}
	s.connection = 0
	s.doubtful = end == MayStay
	if end == Ends {
		s.clear()
	}
	ask = end != Ends && s.filters != 0 && (bits.OnesCount16(h.used()) > MaxFilters/4 || len(h.sessions) > MaxSessions/8)
	if ask {
		key = SessionKey{string(device), s.client}
	}
	t.tidy(device, h)
	return key, ask
}

// Away returns the sessions of a device that hold something without a connection.
func (t *Table) Away(device []byte) (keys []SessionKey) {
	h := t.devices[string(device)]
	if h == nil {
		return nil
	}
	for i := range h.sessions {
		if s := &h.sessions[i]; s.isAway() && s.filters != 0 {
			keys = append(keys, SessionKey{string(device), s.client})
		}
	}
	return keys
}

// Doubt puts a session in doubt. It reports whether the session holds something and has no connection.
func (t *Table) Doubt(key SessionKey) bool {
	s := t.find(key)
	if s == nil || !s.isAway() || s.filters == 0 {
		return false
	}
	s.doubtful = true
	return true
}

// Doubtful returns a topic by which to find out whether a session in doubt is still there: it has ended if no client with its
// client id is subscribed to the topic. The topic is "" if the session is not in doubt; away says that it is there without a
// connection.
func (t *Table) Doubtful(key SessionKey) (topic string, away bool) {
	s := t.find(key)
	switch {
	case s == nil || !s.isAway() || s.filters == 0:
		return "", false
	case s.doubtful:
		return t.devices[key.device].filters[bits.TrailingZeros16(s.filters)], true
	default:
		return "", true
	}
}

// Stays notes that a session in doubt is still there.
func (t *Table) Stays(device, clientID []byte) {
	if s := t.find(SessionKey{string(device), t.client(clientID)}); s != nil {
		s.doubtful = false
	}
}

// Gone notes that a session in doubt has ended. One that is not in doubt any more stays.
func (t *Table) Gone(key SessionKey) {
	if s := t.find(key); s != nil && s.doubtful {
		s.clear()
		t.tidy([]byte(key.device), t.devices[key.device])
	}
}

// find returns a session, nil if there is none of that name.
func (t *Table) find(key SessionKey) *session {
	if h := t.devices[key.device]; h != nil {
		return h.session(key.client)
	}
	return nil
}

// Len returns how many devices are subscribed to something.
func (t *Table) Len() int { return len(t.devices) }

func (t *Table) client(id []byte) uint64 { return maphash.Bytes(t.seed, id) }

// tidy frees what nothing refers to any more. A session that holds nothing stays as long as there is room, because the
// broker's list of it keeps its length.
func (t *Table) tidy(device []byte, h *holder) {
	h.drop((*session).isNew)
	used := h.used()
	for i := range h.filters {
		if used&(1<<i) == 0 {
			h.filters[i] = ""
		}
	}
	if len(h.sessions) == 0 {
		delete(t.devices, string(device))
	}
}

// session returns the session of a client id, nil if there is none.
func (h *holder) session(client uint64) *session {
	for i := range h.sessions {
		if h.sessions[i].client == client {
			return &h.sessions[i]
		}
	}
	return nil
}

// drop forgets the sessions of a kind that hold nothing.
func (h *holder) drop(kind func(*session) bool) {
	h.sessions = slices.DeleteFunc(h.sessions, func(s session) bool { return s.filters == 0 && s.unknown == 0 && kind(&s) })
}

func (s *session) isNew() bool  { return s.places == 0 }
func (s *session) isAway() bool { return s.connection == 0 }

// used returns a bit for each of the topics that a session holds.
func (h *holder) used() (used uint16) {
	for i := range h.sessions {
		used |= h.sessions[i].filters
	}
	return used
}

// place returns where a topic stands among those that are used; -1: nowhere.
func (h *holder) place(filter []byte, used uint16) int {
	for i := range h.filters {
		if used&(1<<i) != 0 && h.filters[i] == string(filter) {
			return i
		}
	}
	return -1
}

// unknown returns how many subscriptions the broker restored of which the topics are not known. It takes the session that
// has most: the sessions of one device mostly have the same topics.
func (h *holder) unknown() (most int) {
	for i := range h.sessions {
		most = max(most, h.sessions[i].unknown)
	}
	return most
}

// look takes note of what the broker's list of the session tells.
func (s *session) look(c *Connection) {
	if s.connection != c.Number {
		s.connection, s.doubtful = c.Number, false
		if c.Places == 0 {
			s.clear() // a new session under the old client id
		}
	}
	grown := c.Places - s.places
	switch {
	case grown < 0: // Mosquitto 2.1 closes the gaps
		s.free = max(0, s.free+grown)
	case grown > 0 && s.free > 0: // a place that was taken for free was not
		s.unknown += s.free
		s.free = 0
	case grown == 0 && s.added && s.free > 0:
		s.free--
	case grown == 0 && s.added && s.unknown > 0:
		s.unknown-- // what was added is one of those that the broker restored
	}
	s.betrayed = s.betrayed || grown > 0 && s.trusted
	s.added, s.trusted, s.places = false, false, c.Places
}

// clear forgets what the session held.
func (s *session) clear() {
	*s = session{client: s.client, connection: s.connection}
}
