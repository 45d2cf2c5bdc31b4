// Package replay remembers which messages were accepted, exactly and for as
// long as they could be accepted again: no false positive, no eviction inside
// the time window, at most 64 bytes for a remembered message, no pauses.
package replay

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// MaxCapacity is the largest capacity of a [Set].
const MaxCapacity = math.MaxInt32

// Of the timing wheel: a slot holds the messages stamped in the same 4 seconds,
// and the wheel turns once in 72 hours. That is more than the window of the
// largest sensible tolerance (2 * 24 hours), so a message is visited once.
const (
	slots     = 1 << 16
	slotShift = 2                  // a slot is 1<<slotShift seconds wide
	turn      = slots << slotShift // seconds
	slotSweep = 64                 // empty slots that are passed in one step
)

// maxClock bounds the clock, so that no sum with it overflows. It lies beyond
// every timestamp that fits a record.
const maxClock = 1 << 33

// Entry is what a Set keeps with a remembered id, to tell a redelivery of the
// same message from a replay.
type Entry struct {
	Tag     [12]byte // the caller's hash of the message and of how it was published
	Session uint32   // the caller's mark for the connection it came on
}

// Result says what [Set.Insert] did. Its zero value is none of them.
type Result int

const (
	Inserted  Result = iota + 1 // the id was new and is remembered now
	Duplicate                   // the id is remembered already; its Entry is unchanged
	Stale                       // see [Set.Forgotten]: it cannot be told whether the id is new
	Full                        // capacity ids are remembered; none is forgotten before its time
)

// Set is the memory of accepted message ids. An id is the pair of a device's
// serial number and a message id. It stays remembered while its message's
// timestamp is within tolerance of the clock, both ends included. Only
// [Set.Expire] forgets, and only what is out of reach at the time it is given:
// later than timestamp + tolerance, or more than three days before timestamp -
// tolerance. The caller accepts a message in this order:
//
//	set.Expire(now, 4)
//	if abs(now-timestamp) > tolerance || set.Forgotten(timestamp) { /* stale */ }
//	if _, found := set.Lookup(device, id); found { /* replay, or redelivery */ }
//	/* verify the signature */
//	switch set.Insert(device, id, timestamp, entry) { /* all but Inserted deny */ }
//
// A clock may step either way, so what is out of reach now may not stay so. The
// set therefore notes the timestamps of what it forgot, and a message with such a
// timestamp must be refused as stale whatever the clock says ([Set.Forgotten];
// Insert enforces it). So no message is accepted twice, whatever the clock or
// the tolerance does. What a step of the clock costs beyond the wrong time itself:
//
//   - Forward: nothing. What is forgotten, the clock refuses too.
//   - Back: messages stamped no later than one that was forgotten before the
//     step are refused: a device's, until its clock has passed that timestamp.
//   - Forward, by any distance and for any time, and back: the same. That is over
//     within tolerance for a device whose clock is right, because what is noted are
//     timestamps of messages, not readings of the clock. Messages accepted in
//     between, from devices whose clocks were wrong alike, are noted as a span of
//     their own, which bars nothing before it; those more than three days ahead are
//     forgotten within three days, so that they do not fill the set until their time comes.
//
// A mark at the highest reading of the clock would be simpler and as safe, but a
// glitch of a year would bar every device for that year. Advancing the mark no
// faster than a monotonic clock avoids that, but a host that starts in 1970 and
// then learns the date would forget nothing more, and deny as soon as it is full.
//
// Every method takes constant time, Expire in proportion to its limit. None
// allocates but Insert, at most one block of 32 KiB, and Spans. Memory follows
// the largest number of ids ever remembered at once, not the capacity; it is
// used again, and not returned.
//
// The zero value is not usable. A Set is not safe for concurrent use: it belongs
// to the broker's thread; only Len and Capacity may be called from any goroutine.
type Set struct {
	table
	capacity  int
	length    atomic.Int64
	tolerance int64 // seconds
	forgotten spans

	// Every record is in the list of its wheel slot or in the one that is being
	// drained. Slots are numbered through: slot n is wheel[n%slots].
	wheel [slots]uint32
	drain uint32
	hand  int64 // the slot to drain next
	end   int64 // the slot to stop before: it has not passed yet
	least int64 // no record in the wheel belongs to an earlier slot
}

// New returns an empty set for at most capacity ids. Tolerance is how far a
// message's timestamp may be from the clock; a fraction of a second counts as
// one. It panics if capacity is not within 1 to [MaxCapacity], or tolerance is
// negative.
func New(capacity int, tolerance time.Duration) *Set {
	if capacity < 1 || capacity > MaxCapacity {
		panic("replay: capacity out of range")
	}
	s := &Set{
		table:     newTable(capacity),
		capacity:  capacity,
		forgotten: newSpans(),
		hand:      math.MaxInt64,
		end:       math.MaxInt64,
		least:     math.MaxInt64,
	}
	s.SetTolerance(tolerance)
	return s
}

// SetTolerance changes the tolerance, for the remembered ids too. A larger one
// must be set before the caller accepts messages by it, a smaller one after. It
// panics if tolerance is negative.
func (s *Set) SetTolerance(tolerance time.Duration) {
	if tolerance < 0 {
		panic("replay: negative tolerance")
	}
	s.tolerance = int64(tolerance / time.Second)
	if tolerance%time.Second != 0 {
		s.tolerance++
	}
}

// Len returns the number of remembered ids, those included whose time has
// passed but which Expire has not come to. Safe for concurrent use.
func (s *Set) Len() int { return int(s.length.Load()) }

// Capacity returns how many ids the set may remember. Safe for concurrent use.
func (s *Set) Capacity() int { return s.capacity }

// Prefetch announces a Lookup of the id, so that the memory it needs is at hand by then: for a caller who knows the id
// some 100 ns before he can ask.
func (s *Set) Prefetch(device uint32, id [16]byte) {
	key := makeKey(device, id)
	prefetch(s.bucketOf(s.hash(&key)))
}

// Lookup returns what was inserted with the id, if it is remembered.
func (s *Set) Lookup(device uint32, id [16]byte) (Entry, bool) {
	key := makeKey(device, id)
	_, r := s.find(&key)
	if r == nil {
		return Entry{}, false
	}
	return Entry{Tag: r.tag, Session: r.session}, true
}

// Update changes what is kept with an id, if the id is remembered.
func (s *Set) Update(device uint32, id [16]byte, e Entry) {
	key := makeKey(device, id)
	if _, r := s.find(&key); r != nil {
		r.tag, r.session = e.Tag, e.Session
	}
}

// Insert remembers the id of a message, unless it is remembered already.
// Timestamp is the message's own, in unix seconds.
func (s *Set) Insert(device uint32, id [16]byte, timestamp int64, e Entry) Result {
	key := makeKey(device, id)
	if _, r := s.find(&key); r != nil {
		return Duplicate
	}
	if s.Forgotten(timestamp) {
		return Stale
	}
	n := s.Len()
	if n == s.capacity {
		return Full
	}
	i, r := s.add(&key, n)
	r.timestamp = uint32(timestamp)
	r.tag, r.session = e.Tag, e.Session
	s.link(i, r)
	// What is inserted when it is too old already lies before the hand, which goes
	// back for it: otherwise it would stay for a turn of the wheel.
	s.hand = min(s.hand, timestamp>>slotShift)
	s.least = min(s.least, s.hand)
	s.length.Add(1)
	return Inserted
}

// Remove takes the id back as if it had never been inserted, and reports whether
// it was remembered. It is for a message that was not accepted after all: of an
// accepted message it would admit a replay.
func (s *Set) Remove(device uint32, id [16]byte) bool {
	key := makeKey(device, id)
	i, r := s.find(&key)
	if r == nil {
		return false
	}
	s.unlink(i, r)
	s.drop(i, r)
	s.length.Add(-1)
	return true
}

// Expire forgets ids whose message is too old at now, in unix seconds: the
// reading of the clock, rounded down, that the caller judges timestamps by. It
// takes at most limit steps, each of which forgets at most one id, and returns
// how many it forgot. An id goes up to 4 seconds late, or later if the limits are
// small for the traffic: 4 before every Insert and 256 in every tick are enough.
func (s *Set) Expire(now int64, limit int) (removed int) {
	now = min(max(now, 0), maxClock)
	oldest := now - s.tolerance
	farthest := now + s.tolerance + turn
	end := oldest >> slotShift
	s.least = min(s.least, end)
	if end < s.end { // the clock stepped back, maybe before all that had passed was drained
		s.hand = s.least
	}
	s.end = end
	s.hand = max(s.hand, end-slots) // once round the wheel meets everything
	for ; limit > 0; limit-- {
		if s.drain == 0 {
			if s.hand >= end {
				s.least = end
				break
			}
			for n := 0; n < slotSweep && s.drain == 0 && s.hand < end; n++ {
				head := &s.wheel[s.hand&(slots-1)]
				s.drain, *head = *head, 0
				s.hand++
			}
			continue
		}
		i := s.drain
		r := s.at(i)
		s.unlink(i, r)
		timestamp := int64(r.timestamp)
		if timestamp >= oldest && timestamp <= farthest { // of a later turn, or the clock stepped back
			s.link(i, r)
			continue
		}
		s.forgotten.add(Span{timestamp, timestamp})
		s.drop(i, r)
		removed++
	}
	if removed > 0 {
		s.length.Add(-int64(removed))
	}
	return removed
}

// Forgotten reports whether messages with this timestamp, in unix seconds, must
// be refused as stale, whatever the clock says, because ids of such messages are
// no longer remembered. It is also true of timestamps that a Set cannot hold:
// before 1970 or after February 2106.
func (s *Set) Forgotten(timestamp int64) bool {
	return timestamp < 0 || timestamp > math.MaxUint32 || s.forgotten.contain(timestamp)
}

// Earliest returns a time, in unix seconds, before which no remembered message is stamped: whatever was inserted with an
// earlier timestamp is forgotten, and in [Set.Spans].
func (s *Set) Earliest() int64 {
	if s.Len() == 0 || s.least > maxClock>>slotShift {
		return math.MaxInt64
	}
	return s.least << slotShift
}

// Spans returns what [Set.Forgotten] is true of, in ascending order: at most 8
// spans. With Restore it carries the promise over a restart: the caller stores
// the spans before it discards its own record of the messages they cover.
func (s *Set) Spans() []Span { return slices.Clone(s.forgotten) }

// Restore makes [Set.Forgotten] true of the spans too.
func (s *Set) Restore(forgotten []Span) {
	for _, span := range forgotten {
		s.forgotten.add(Span{max(span.First, 0), min(span.Last, math.MaxUint32)})
	}
}

// slot returns the head of the list of the records stamped like r.
func (s *Set) slot(r *record) *uint32 {
	return &s.wheel[r.timestamp>>slotShift&(slots-1)]
}

// link puts record i into its slot.
func (s *Set) link(i uint32, r *record) {
	head := s.slot(r)
	r.next, r.prev = *head, 0
	if r.next != 0 {
		s.at(r.next).prev = i
	}
	*head = i
}

// unlink takes record i out of its slot, or out of what is left of a slot that
// is being emptied.
func (s *Set) unlink(i uint32, r *record) {
	switch {
	case r.prev != 0:
		s.at(r.prev).next = r.next
	case s.drain == i:
		s.drain = r.next
	default:
		*s.slot(r) = r.next
	}
	if r.next != 0 {
		s.at(r.next).prev = r.prev
	}
}
