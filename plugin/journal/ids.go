package journal

import (
	"encoding/binary"
	"math"
)

// A block of ids is what is kept of settled messages: enough to recognise one that comes again, and 40 bytes for each. It
// is the body of a record of kind kindIDs, little-endian:
//
//	 0  base     8  unix seconds
//	 8  entries  4  how many
//	12  sources  4  how many
//	16  sources, one behind the other:
//	      topic hash 8, client 4, flags 1 (as in an ACCEPTED record), device's length 1, device
//	    entries, 40 bytes each:
//	      message 16, tag 16, timestamp 4 (seconds since base), source 4 (index)
//
// A source is what successive messages of a device have in common.
const (
	idsFixed     = 16
	sourceFixed  = 14
	idSize       = 40
	maxIDsInTurn = 4096 // entries of a block: some 170 KiB
)

// source is what messages have in common.
type source struct {
	device    string
	topicHash [8]byte
	client    uint32
	flags     byte
}

func (s *source) size() int { return sourceFixed + len(s.device) }

// An idBlock is being filled. The zero value is empty.
type idBlock struct {
	base    int64
	newest  int64
	index   map[source]uint32
	sources []byte
	entries []byte
	n       int
	charges map[string]int64 // bytes, by device
}

// add takes the id of a message, and reports whether there was room for it.
func (b *idBlock) add(a *Accepted) bool {
	switch {
	case b.n == 0:
		*b = idBlock{base: a.Timestamp, newest: a.Timestamp, index: make(map[source]uint32), charges: make(map[string]int64),
			sources: b.sources[:0], entries: b.entries[:0]}
		// Some messages that follow are stamped earlier.
		if b.base > math.MinInt64+math.MaxInt32 {
			b.base -= math.MaxInt32
		}
	case b.n == maxIDsInTurn || a.Timestamp < b.base || uint64(a.Timestamp-b.base) > math.MaxUint32:
		return false
	}
	le := binary.LittleEndian
	s := source{a.Device, a.TopicHash, a.Client, a.flags()}
	i, known := b.index[s]
	if !known {
		i = uint32(len(b.index))
		b.index[s] = i
		b.sources = append(b.sources, s.topicHash[:]...)
		b.sources = le.AppendUint32(b.sources, s.client)
		b.sources = append(b.sources, s.flags, byte(len(s.device)))
		b.sources = append(b.sources, s.device...)
		b.charges[s.device] += int64(s.size())
	}
	b.entries = append(b.entries, a.MessageID[:]...)
	b.entries = append(b.entries, a.Tag[:]...)
	b.entries = le.AppendUint32(b.entries, uint32(a.Timestamp-b.base))
	b.entries = le.AppendUint32(b.entries, i)
	b.charges[s.device] += idSize
	b.newest = max(b.newest, a.Timestamp)
	b.n++
	return true
}

// appendTo appends the block as a record for a place in the segment with the seed.
func (b *idBlock) appendTo(out []byte, offset, seed uint32) []byte {
	le := binary.LittleEndian
	start := len(out)
	out = append(out, make([]byte, recordHeader)...)
	out = le.AppendUint64(out, uint64(b.base))
	out = le.AppendUint32(out, uint32(b.n))
	out = le.AppendUint32(out, uint32(len(b.index)))
	out = append(out, b.sources...)
	out = append(out, b.entries...)
	return seal(out, start, kindIDs, offset, seed)
}

// readIDs gives every id in the body of a block to each, which borrows the message, with the bytes that it takes. It
// reports whether the block is as it should be; nothing is given of one that is not.
func readIDs(body []byte, each func(a *Accepted, bytes int)) bool {
	le := binary.LittleEndian
	base, n, count := int64(le.Uint64(body)), uint64(le.Uint32(body[8:])), uint64(le.Uint32(body[12:]))
	rest := body[idsFixed:]
	if n*idSize > uint64(len(rest)) || count > n {
		return false
	}
	entries := rest[uint64(len(rest))-n*idSize:]
	rest = rest[:uint64(len(rest))-n*idSize]
	sources := make([]source, 0, count)
	for range count {
		if len(rest) < sourceFixed || len(rest) < sourceFixed+int(rest[13]) {
			return false
		}
		s := source{client: le.Uint32(rest[8:]), flags: rest[12], device: string(rest[sourceFixed : sourceFixed+int(rest[13])])}
		copy(s.topicHash[:], rest)
		rest = rest[s.size():]
		sources = append(sources, s)
	}
	if len(rest) != 0 {
		return false
	}
	for at := 36; at < len(entries); at += idSize {
		if uint64(le.Uint32(entries[at:])) >= count {
			return false
		}
	}
	given := make([]bool, count)
	var a Accepted
	for ; len(entries) > 0; entries = entries[idSize:] {
		i := le.Uint32(entries[36:])
		s := &sources[i]
		a.Device, a.TopicHash, a.Client = s.device, s.topicHash, s.client
		a.setFlags(s.flags)
		copy(a.MessageID[:], entries)
		copy(a.Tag[:], entries[16:])
		a.Timestamp = base + int64(le.Uint32(entries[32:]))
		bytes := idSize
		if !given[i] {
			given[i] = true
			bytes += s.size()
		}
		each(&a, bytes)
	}
	return true
}
