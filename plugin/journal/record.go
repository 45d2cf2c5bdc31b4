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
//	40  tag       8
//	48  timestamp 8  unix seconds
//	56  accepted  8  unix nanoseconds; the least value: none
//	64  flags     1  bit 0: QoS 2
//	65  device    1  length
//	66  topic     2  length
//	68  trace     1  length
//	69  zero      3
//	72  client    4
//	76  device, topic, traceparent, payload; zero bytes up to a multiple of 8
//
// Marker and offset are what a search for the next record compares, one word at a time. The checksum of the header, which
// covers the place and the checksum of the body, makes the length worth trusting where only the body is damaged.
const (
	recordAlign  = 8
	recordHeader = 24
	bodyFixed    = 52
	recordMarker = 0xfe4a52ff // ff 52 4a fe
	kindAccepted = 1
	flagQoS2     = 1

	maxRecord = recordHeader + bodyFixed + MaxDevice + MaxTopic + MaxTraceparent + MaxPayload + recordAlign
)

// Limits of what [Journal.Append] takes, in bytes.
const (
	MaxDevice      = math.MaxUint8
	MaxTopic       = math.MaxUint16
	MaxTraceparent = math.MaxUint8
	MaxPayload     = 1 << 28 // MQTT allows less
)

// castagnoli is the table of CRC-32C. It is read alone.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errHeader = errors.New("no record begins here")
	errBody   = errors.New("the record's checksum does not match")
)

// Accepted is a message that was acknowledged to its device, or is about to be.
type Accepted struct {
	Device      string
	MessageID   [16]byte
	Tag         [8]byte // of the message's MAC, to tell a redelivery from a replay
	QoS2        bool
	Timestamp   int64     // the message's own, unix seconds
	AcceptedAt  time.Time // to the nanosecond; UTC when read
	Topic       []byte
	Payload     []byte
	Traceparent string // "": none
	Client      uint32 // the caller's mark of the client that it came from
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
	case len(a.Payload) > MaxPayload:
		return 0, fmt.Errorf("%w: a payload of %d bytes, at most %d are possible", ErrTooLarge, len(a.Payload), MaxPayload)
	}
	return aligned(recordHeader + bodyFixed + len(a.Device) + len(a.Topic) + len(a.Traceparent) + len(a.Payload)), nil
}

func aligned(n int) int { return (n + recordAlign - 1) &^ (recordAlign - 1) }

// appendRecord appends the record of a, whose limits were checked, for a place in the segment with the seed.
func appendRecord(b []byte, a *Accepted, offset, seed uint32) []byte {
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
	var flags byte
	if a.QoS2 {
		flags = flagQoS2
	}
	b = append(b, flags, byte(len(a.Device)))
	b = le.AppendUint16(b, uint16(len(a.Topic)))
	b = append(b, byte(len(a.Traceparent)), 0, 0, 0)
	b = le.AppendUint32(b, a.Client)
	b = append(b, a.Device...)
	b = append(b, a.Topic...)
	b = append(b, a.Traceparent...)
	b = append(b, a.Payload...)

	header, body := b[start:start+recordHeader], b[start+recordHeader:]
	le.PutUint32(header[0:], recordMarker)
	le.PutUint32(header[4:], offset)
	le.PutUint32(header[8:], uint32(len(body)))
	header[12] = kindAccepted
	le.PutUint32(header[16:], crc32.Update(seed, castagnoli, body))
	le.PutUint32(header[20:], crc32.Update(seed, castagnoli, header[:20]))

	var padding [recordAlign]byte
	return append(b, padding[:aligned(len(body))-len(body)]...)
}

// recordStart is the first word of a record at offset.
func recordStart(offset uint32) uint64 { return uint64(offset)<<32 | recordMarker }

// parseHeader returns the length of the body of the record that begins with h at offset, if one does.
func parseHeader(h []byte, offset, seed uint32) (length int, ok bool) {
	le := binary.LittleEndian
	if le.Uint64(h) != recordStart(offset) || le.Uint32(h[20:]) != crc32.Update(seed, castagnoli, h[:20]) {
		return 0, false
	}
	n := le.Uint32(h[8:])
	if le.Uint32(h[12:]) != kindAccepted || n < bodyFixed || n > maxRecord {
		return 0, false
	}
	return int(n), true
}

// parseBody reads a record whose header is right into a. Topic and Payload are parts of record.
func parseBody(record []byte, seed uint32, a *Accepted) error {
	le := binary.LittleEndian
	b := record[recordHeader : recordHeader+int(le.Uint32(record[8:]))]
	if le.Uint32(record[16:]) != crc32.Update(seed, castagnoli, b) {
		return errBody
	}
	device, topic, trace := int(b[41]), int(le.Uint16(b[42:])), int(b[44])
	if b[40] > flagQoS2 || b[45]|b[46]|b[47] != 0 || len(b) < bodyFixed+device+topic+trace {
		return errBody
	}
	copy(a.MessageID[:], b[0:])
	copy(a.Tag[:], b[16:])
	a.Timestamp = int64(le.Uint64(b[24:]))
	a.AcceptedAt = time.Time{}
	if accepted := int64(le.Uint64(b[32:])); accepted != math.MinInt64 {
		a.AcceptedAt = time.Unix(0, accepted).UTC()
	}
	a.QoS2 = b[40] == flagQoS2
	a.Client = le.Uint32(b[48:])
	b = b[bodyFixed:]
	if name := b[:device]; !bytes.Equal(name, []byte(a.Device)) { // successive records are often one device's
		a.Device = string(name)
	}
	b = b[device:]
	a.Topic, b = b[:topic:topic], b[topic:]
	a.Traceparent, b = string(b[:trace]), b[trace:]
	a.Payload = b[:len(b):len(b)]
	return nil
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
