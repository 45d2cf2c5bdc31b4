package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"
)

// An ACCEPTED record, little-endian, at a multiple of 8 bytes:
//
//	 0  marker    4  recordMarker; its bytes occur in no UTF-8 text
//	 4  offset    4  the record's own place in the file
//	 8  length    4  of the body
//	12  kind      1  kindAccepted
//	13  zero      3
//	16  body      4  CRC-32C of the body, from the segment's seed
//	20  header    4  CRC-32C of the 20 bytes before, from the segment's seed
//	24  message   16
//	40  tag       16
//	56  timestamp 8  unix seconds
//	64  accepted  8  unix nanoseconds; the least value: none
//	72  topichash 8
//	80  client    4
//	84  envelope  4  length
//	88  topic     2  length
//	90  device    1  length
//	91  trace     1  length
//	92  flags     1  bits 0-1: QoS, 3: unknown; bit 2: retain; bit 3: legacy
//	93  waited    3  seconds; 0: it was not requeued
//	96  device, topic, traceparent, envelope, payload; zero bytes up to a multiple of 8
//
// Marker and offset are what a search for the next record compares, one word at a time. The checksum of the header, which
// covers the place and the checksum of the body, makes the length worth trusting where only the body is damaged.
//
// In a collector (see collect.go) a record is of kind kindMoved, and its body has 16 bytes more, behind the fixed part:
//
//	 96  origin  8  the Position at which the message was accepted
//	104  from    4  the segment that it was moved from
//	108  zero    4
//
// or it is a block of ids, of kind kindIDs (see ids.go).
//
// Format 1 had records of kind kindAcceptedV1, which are read and not written. They are the same up to the tag:
//
//	40  tag       8
//	48  timestamp 8
//	56  accepted  8
//	64  flags     1  bit 0: QoS 2
//	65  device    1  length
//	66  topic     2  length
//	68  trace     1  length
//	69  zero      3
//	72  client    4
//	76  device, topic, traceparent, payload
const (
	recordAlign    = 8
	recordHeader   = 24
	bodyFixed      = 72
	bodyFixedV1    = 52
	recordMarker   = 0xfe4a52ff // ff 52 4a fe
	kindAcceptedV1 = 1
	kindAccepted   = 2
	kindMoved      = 3
	kindIDs        = 4
	movedFixed     = 16
	flagQoS        = 3
	flagRetain     = 4
	flagLegacy     = 8
	flagQoS2V1     = 1

	maxRecord = recordHeader + bodyFixed + MaxDevice + MaxTopic + MaxTraceparent + MaxEnvelope + MaxPayload + movedFixed + recordAlign
)

// Limits of what [Journal.Append] takes, in bytes.
const (
	MaxDevice      = math.MaxUint8
	MaxTopic       = math.MaxUint16
	MaxTraceparent = math.MaxUint8
	MaxPayload     = 1 << 28 // MQTT allows less
	MaxEnvelope    = 1 << 28
)

// castagnoli is the table of CRC-32C. It is only read.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errHeader = errors.New("no record begins here")
	errBody   = errors.New("the record's checksum does not match")
)

// UnknownQoS is the QoS of a [Accepted.Legacy] message that was not published at QoS 2: format 1 did not say more.
const UnknownQoS = 3

// Accepted is a message that was acknowledged to its device, or is about to be.
type Accepted struct {
	Device      string
	MessageID   [16]byte
	Tag         [16]byte  // tells a redelivery from a replay
	TopicHash   [8]byte   // of the topic that it was published on
	QoS         uint8     // 0, 1, 2, or UnknownQoS
	Retain      bool      // it was published as a retained message
	Timestamp   int64     // the message's own, unix seconds
	AcceptedAt  time.Time // to the nanosecond; UTC when read
	Waited      uint32    // seconds from the first time it was accepted to AcceptedAt, where it was requeued; see Requeue
	Topic       []byte
	Payload     []byte
	Envelope    []byte // what was published, signature and all; empty: not kept
	Traceparent string // "": none
	Client      uint32 // the caller's mark of the client that it came from

	// Legacy says that the record was written by format 1: of Tag only the first 8 bytes are known, of QoS only whether
	// it was 2, and nothing of TopicHash and Retain. Those are zero then, which stands for no value.
	Legacy bool
}

// Size returns how many bytes a takes in a journal, its outcome included.
func (a *Accepted) Size() int {
	n, err := recordSize(a)
	if err != nil {
		return 0 // it takes none: Append refuses it
	}
	return n + slotSize
}

// recordSize returns how many bytes a takes in a segment.
func recordSize(a *Accepted) (int, error) {
	switch {
	case len(a.Device) > MaxDevice:
		return 0, fmt.Errorf("%w: a device id of %d bytes, at most %d are possible", ErrTooLarge, len(a.Device), MaxDevice)
	case len(a.Topic) > MaxTopic:
		return 0, fmt.Errorf("%w: a topic of %d bytes, at most %d are possible", ErrTooLarge, len(a.Topic), MaxTopic)
	case len(a.Traceparent) > MaxTraceparent:
		return 0, fmt.Errorf("%w: a traceparent of %d bytes, at most %d are possible", ErrTooLarge, len(a.Traceparent), MaxTraceparent)
	case len(a.Envelope) > MaxEnvelope:
		return 0, fmt.Errorf("%w: an envelope of %d bytes, at most %d are possible", ErrTooLarge, len(a.Envelope), MaxEnvelope)
	case a.QoS > UnknownQoS:
		return 0, fmt.Errorf("journal: a message has QoS %d", a.QoS)
	case len(a.Payload) > MaxPayload:
		return 0, fmt.Errorf("%w: a payload of %d bytes, at most %d are possible", ErrTooLarge, len(a.Payload), MaxPayload)
	}
	return aligned(recordHeader + bodyFixed + len(a.Device) + len(a.Topic) + len(a.Traceparent) + len(a.Envelope) + len(a.Payload)), nil
}

func aligned(n int) int { return (n + recordAlign - 1) &^ (recordAlign - 1) }

// Requeue makes a message one that is accepted at a time, after it was accepted first at another: Append takes it though the
// device has taken its share. Of the time between the two whole seconds are kept, rounded up, 1 to 194 days.
func (a *Accepted) Requeue(first, now time.Time) {
	const most = 1<<24 - 1
	a.AcceptedAt = now
	a.Waited = uint32(min(max(1, int64((now.Sub(first)+time.Second-1)/time.Second)), most))
}

// FirstAcceptedAt returns when the message was accepted first, or up to a second earlier.
func (a *Accepted) FirstAcceptedAt() time.Time {
	return a.AcceptedAt.Add(-time.Duration(a.Waited) * time.Second)
}

// A move says where a record in a collector comes from; the zero value is that of a record in an ordinary segment.
type move struct {
	origin Position
	from   uint32 // segment
}

// appendRecord appends the record of a, whose limits were checked, for a place in the segment with the seed.
func appendRecord(b []byte, a *Accepted, offset, seed uint32) []byte {
	return appendMoved(b, a, move{}, offset, seed)
}

// appendMoved is appendRecord for a collector, unless m is zero.
func appendMoved(b []byte, a *Accepted, m move, offset, seed uint32) []byte {
	start := len(b)
	le := binary.LittleEndian
	b = append(b, make([]byte, recordHeader)...)
	b = append(b, a.MessageID[:]...)
	b = append(b, a.Tag[:]...)
	b = le.AppendUint64(b, uint64(a.Timestamp))
	accepted := int64(math.MinInt64)
	if !a.AcceptedAt.IsZero() {
		accepted = a.AcceptedAt.UnixNano()
	}
	b = le.AppendUint64(b, uint64(accepted))
	b = append(b, a.TopicHash[:]...)
	b = le.AppendUint32(b, a.Client)
	b = le.AppendUint32(b, uint32(len(a.Envelope)))
	b = le.AppendUint16(b, uint16(len(a.Topic)))
	b = append(b, byte(len(a.Device)), byte(len(a.Traceparent)), a.flags(), byte(a.Waited), byte(a.Waited>>8), byte(a.Waited>>16))
	kind := byte(kindAccepted)
	if m != (move{}) {
		kind = kindMoved
		b = le.AppendUint64(b, uint64(m.origin))
		b = le.AppendUint32(b, m.from)
		b = le.AppendUint32(b, 0)
	}
	b = append(b, a.Device...)
	b = append(b, a.Topic...)
	b = append(b, a.Traceparent...)
	b = append(b, a.Envelope...)
	b = append(b, a.Payload...)

	return seal(b, start, kind, offset, seed)
}

// seal fills in the header of the record whose body is all of b behind it, and pads it.
func seal(b []byte, start int, kind byte, offset, seed uint32) []byte {
	le := binary.LittleEndian
	header, body := b[start:start+recordHeader], b[start+recordHeader:]
	le.PutUint32(header[0:], recordMarker)
	le.PutUint32(header[4:], offset)
	le.PutUint32(header[8:], uint32(len(body)))
	header[12] = kind
	le.PutUint32(header[16:], crc32.Update(seed, castagnoli, body))
	le.PutUint32(header[20:], crc32.Update(seed, castagnoli, header[:20]))

	var padding [recordAlign]byte
	return append(b, padding[:aligned(len(body))-len(body)]...)
}

// recordStart is the first word of a record at offset.
func recordStart(offset uint32) uint64 { return uint64(offset)<<32 | recordMarker }

// recordHead is as much of a record as it takes to know whose it is.
const recordHead = recordHeader + bodyFixed + movedFixed + MaxDevice

// recordOwner returns the device whose message begins with b at offset, and the size of its record. The device is a part
// of b.
func recordOwner(b []byte, offset, seed uint32) (device []byte, size int, ok bool) {
	if len(b) < recordHeader {
		return nil, 0, false
	}
	length, ok := parseHeader(b, offset, seed)
	if !ok || len(b) < recordHeader+min(length, bodyFixed) {
		return nil, 0, false
	}
	body := b[recordHeader:]
	var at, n int
	switch b[12] {
	case kindAccepted:
		at, n = bodyFixed, int(body[66])
	case kindMoved:
		at, n = bodyFixed+movedFixed, int(body[66])
	case kindAcceptedV1:
		at, n = bodyFixedV1, int(body[41])
	default:
		return nil, 0, false
	}
	if len(body) < at+n {
		return nil, 0, false
	}
	return body[at : at+n], aligned(recordHeader + length), true
}

// flags is what of a message takes single bits.
func (a *Accepted) flags() byte {
	f := a.QoS & flagQoS
	if a.Retain {
		f |= flagRetain
	}
	if a.Legacy {
		f |= flagLegacy
	}
	return f
}

func (a *Accepted) setFlags(f byte) {
	a.QoS, a.Retain, a.Legacy = f&flagQoS, f&flagRetain != 0, f&flagLegacy != 0
}

// parseHeader returns the length of the body of the record that begins with h at offset, if one does.
func parseHeader(h []byte, offset, seed uint32) (length int, ok bool) {
	le := binary.LittleEndian
	if le.Uint64(h) != recordStart(offset) || le.Uint32(h[20:]) != crc32.Update(seed, castagnoli, h[:20]) {
		return 0, false
	}
	least := uint32(bodyFixed)
	switch le.Uint32(h[12:]) {
	case kindAccepted:
	case kindAcceptedV1:
		least = bodyFixedV1
	case kindMoved:
		least = bodyFixed + movedFixed
	case kindIDs:
		least = idsFixed
	default:
		return 0, false
	}
	n := le.Uint32(h[8:])
	if n < least || n > maxRecord {
		return 0, false
	}
	return int(n), true
}

// A record is what one holds: a message, or a block of ids.
type record struct {
	Accepted
	move
	ids []byte // the body of a block
}

// parseRecord reads a record whose header is right into r. The slices of r are parts of b.
func parseRecord(b []byte, seed uint32, r *record) error {
	le := binary.LittleEndian
	body := b[recordHeader : recordHeader+int(le.Uint32(b[8:]))]
	if le.Uint32(b[16:]) != crc32.Update(seed, castagnoli, body) {
		return errBody
	}
	r.move, r.ids = move{}, nil
	switch b[12] {
	case kindIDs:
		r.ids = body
		return nil
	case kindAcceptedV1:
		return parseBodyV1(body, &r.Accepted)
	case kindMoved:
		r.move = move{Position(le.Uint64(body[bodyFixed:])), le.Uint32(body[bodyFixed+8:])}
		if r.move == (move{}) {
			return errBody
		}
		return parseBody(body, movedFixed, &r.Accepted)
	}
	return parseBody(body, 0, &r.Accepted)
}

// parseBody reads the body of a record, the checksum of which is right, into a. The texts begin so many bytes behind the
// fixed part. Topic, Envelope and Payload are parts of b.
func parseBody(b []byte, behind int, a *Accepted) error {
	le := binary.LittleEndian
	envelope, topic, device, trace := uint64(le.Uint32(b[60:])), int(le.Uint16(b[64:])), int(b[66]), int(b[67])
	if b[68] > flagQoS|flagRetain|flagLegacy ||
		uint64(len(b)) < uint64(bodyFixed+behind+device+topic+trace)+envelope {
		return errBody
	}
	copy(a.MessageID[:], b[0:])
	copy(a.Tag[:], b[16:])
	a.Timestamp = int64(le.Uint64(b[32:]))
	a.AcceptedAt = acceptedAt(b[40:])
	copy(a.TopicHash[:], b[48:])
	a.Client = le.Uint32(b[56:])
	a.setFlags(b[68])
	a.Waited = uint32(b[69]) | uint32(b[70])<<8 | uint32(b[71])<<16
	b = a.takeTexts(b[bodyFixed+behind:], device, topic, trace)
	a.Envelope = nil
	if envelope > 0 {
		a.Envelope, b = b[:envelope:envelope], b[envelope:]
	}
	a.Payload = b[:len(b):len(b)]
	return nil
}

// parseBodyV1 reads the body of a record of format 1, the checksum of which is right.
func parseBodyV1(b []byte, a *Accepted) error {
	le := binary.LittleEndian
	device, topic, trace := int(b[41]), int(le.Uint16(b[42:])), int(b[44])
	if b[40] > flagQoS2V1 || b[45]|b[46]|b[47] != 0 || len(b) < bodyFixedV1+device+topic+trace {
		return errBody
	}
	copy(a.MessageID[:], b[0:])
	a.Tag = [16]byte{}
	copy(a.Tag[:8], b[16:])
	a.Timestamp = int64(le.Uint64(b[24:]))
	a.AcceptedAt = acceptedAt(b[32:])
	a.TopicHash, a.QoS, a.Retain, a.Legacy = [8]byte{}, UnknownQoS, false, true
	if b[40] == flagQoS2V1 {
		a.QoS = 2
	}
	a.Client = le.Uint32(b[48:])
	b = a.takeTexts(b[bodyFixedV1:], device, topic, trace)
	a.Envelope, a.Payload = nil, b[:len(b):len(b)]
	return nil
}

func acceptedAt(b []byte) time.Time {
	if nanos := int64(binary.LittleEndian.Uint64(b)); nanos != math.MinInt64 {
		return time.Unix(0, nanos).UTC()
	}
	return time.Time{}
}

// takeTexts reads the device, the topic and the traceparent from the beginning of b, and returns the rest.
func (a *Accepted) takeTexts(b []byte, device, topic, trace int) []byte {
	if name := b[:device]; !bytes.Equal(name, []byte(a.Device)) { // successive records are often one device's
		a.Device = string(name)
	}
	b = b[device:]
	a.Topic, b = b[:topic:topic], b[topic:]
	a.Traceparent, b = string(b[:trace]), b[trace:]
	return b
}

// An outcome takes a slot of 12 bytes, little-endian, one behind the other after the file's header:
//
//	0  offset   4  of the ACCEPTED record in the segment's log
//	4  outcome  4
//	8  CRC-32C  4  of the slot's own place (8 bytes) and the 8 bytes before, from the segment's seed
const slotSize = 12

func slotSum(slot []byte, place int64, seed uint32) uint32 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(place))
	copy(b[8:], slot[:8])
	return crc32.Update(seed, castagnoli, b[:])
}

func appendSlot(b []byte, place int64, offset uint32, o Outcome, seed uint32) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, offset)
	b = binary.LittleEndian.AppendUint32(b, uint32(o))
	return binary.LittleEndian.AppendUint32(b, slotSum(b[start:], place, seed))
}

func parseSlot(slot []byte, place int64, seed uint32) (offset uint32, o Outcome, ok bool) {
	le := binary.LittleEndian
	kind := le.Uint32(slot[4:])
	if le.Uint32(slot[8:]) != slotSum(slot, place, seed) || kind < uint32(Delivered) || kind > uint32(Dead) {
		return 0, 0, false
	}
	return le.Uint32(slot), Outcome(kind), true
}
