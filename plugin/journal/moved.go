package journal

import (
	"cmp"
	"slices"
)

// moved knows where messages are that are not at the position that is their name. Journal.mu guards it. It takes 12 bytes
// for each of them.
type moved map[uint32]*movedFrom // by the segment that the position names

type movedFrom struct {
	places []place // by offset
	live   int     // messages that are not settled
}

type place struct{ offset, segment, at uint32 }

// set notes that the message of a position is at an offset of a segment now.
func (m moved) set(origin Position, segment, at uint32) {
	from := m[origin.segment()]
	if from == nil {
		from = new(movedFrom)
		m[origin.segment()] = from
	}
	i, found := from.find(origin.offset())
	if !found {
		from.places = slices.Insert(from.places, i, place{offset: origin.offset()})
		from.live++
	}
	from.places[i].segment, from.places[i].at = segment, at
}

func (f *movedFrom) find(offset uint32) (int, bool) {
	if n := len(f.places); n == 0 || f.places[n-1].offset < offset { // they come in order
		return n, false
	}
	return slices.BinarySearchFunc(f.places, offset, func(p place, offset uint32) int { return cmp.Compare(p.offset, offset) })
}

// of returns where the message of a position is, as a position.
func (m moved) of(origin Position) (Position, bool) {
	from := m[origin.segment()]
	if from == nil {
		return 0, false
	}
	i, found := from.find(origin.offset())
	if !found {
		return 0, false
	}
	return Position(uint64(from.places[i].segment)<<32 | uint64(from.places[i].at)), true
}

// settled notes that the message of a position is not asked for any more.
func (m moved) settled(origin Position) {
	if from := m[origin.segment()]; from != nil {
		if from.live--; from.live <= 0 {
			delete(m, origin.segment())
		}
	}
}

// resolve returns where the message of a position is. j.mu is held.
func (j *Journal) resolve(pos Position) Position {
	if s := j.segments[pos.segment()]; s != nil && !s.collector {
		return pos
	}
	if at, found := j.moved.of(pos); found {
		return at
	}
	return pos
}
