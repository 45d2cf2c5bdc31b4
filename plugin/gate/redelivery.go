package gate

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/replay"
)

// The session that is kept with every remembered message id says when its message came, to distinguish a redelivery from a
// replay:
//
//	bit  31     the tag comes from a record of an earlier version: see legacyEntry
//	bits 29-0   how many connections of the device had ended when it came, plus one; 0: it came before the start, over a
//	            connection that has ended since
const (
	sessionLegacy = 1 << 31
	sessionCount  = 1<<30 - 1
)

// A messageTag identifies a signed message together with the topic, the QoS and the retain flag that it was published with.
// Two publishes of one device with the same message id are the same if their tags are the same and the signature of the
// second is verified.
//
//	messageTag = MAC[0:16] XOR SHA-256(topic)[0:16] XOR (0, 0, 0, 0, 0, 0, 0, retain * 4 + QoS, 0, 0, 0, 0, 0, 0, 0, 0)
//
// The MAC is of the signed bytes, and it cannot be chosen without the secret. Of a device with a public key, the SHA-256 of
// the signed bytes, with the payload as sent, is in its place: such a device may sign the same message again, and ECDSA then gives
// another signature. The SHA-256 is no secret, but the text that it stands for is verified, and 96 bits of it are
// kept: only the device itself could sign another text with the same bits. Topic, QoS and retain are not signed: an attacker
// who changes one of them changes the tag, and would need a second topic whose hash cancels the change.
type messageTag [16]byte

func newMessageTag(mac []byte, topicHash *[16]byte, qos byte, retain bool) (t messageTag) {
	_ = mac[15]
	le := binary.LittleEndian
	le.PutUint64(t[:8], le.Uint64(mac[:8])^le.Uint64(topicHash[:8]))
	le.PutUint64(t[8:], le.Uint64(mac[8:16])^le.Uint64(topicHash[8:]))
	t[7] ^= qos
	if retain {
		t[7] ^= 4
	}
	return t
}

// from returns what the replay memory keeps of the tag of a message that a client published:
//
//	messageTag[0:8], messageTag[8:12] XOR client
//
// All 16 bytes and the client as well would take more than 64 bytes a message.
func (t messageTag) from(client uint32) (kept [12]byte) {
	copy(kept[:], t[:12])
	le := binary.LittleEndian
	le.PutUint32(kept[8:], le.Uint32(kept[8:])^client)
	return kept
}

// anyClient is the part of what from returns that is the same for every client.
const anyClient = 8

// hashTopic returns the hash of a topic that is part of a tag.
func hashTopic(topic []byte) [16]byte {
	sum := sha256.Sum256(topic)
	return [16]byte(sum[:16])
}

// lastTopic is the topic that a device published on last, with its hash: most of its messages need the same one.
type lastTopic struct {
	topic []byte
	hash  [16]byte
}

func (l *lastTopic) hashOf(topic []byte) *[16]byte {
	if l.topic == nil || !bytes.Equal(l.topic, topic) {
		l.topic = append(l.topic[:0], topic...)
		l.hash = hashTopic(topic)
	}
	return &l.hash
}

// tag returns the tag of the message of p.
func (d *device) tag(p *Publish, e *envelope.Envelope) messageTag {
	return newMessageTag(d.mac(e), d.topic.hashOf(p.Topic), p.QoS, p.Retain)
}

// mac returns what stands for the signed bytes in a tag.
func (d *device) mac(e *envelope.Envelope) []byte {
	if d.failures == nil {
		return e.Signature
	}
	return e.Digest()[:]
}

// remember returns what the replay memory keeps of the message of p.
func (d *device) remember(p *Publish, e *envelope.Envelope) replay.Entry {
	return replay.Entry{Tag: d.tag(p, e).from(hashClient(p.ClientID)), Session: d.departures}
}

// RecoveredEntry returns what the replay memory keeps of a message that an earlier process accepted: all its connections
// have ended.
func RecoveredEntry(a *journal.Accepted) replay.Entry {
	if a.Legacy {
		return legacyEntry(a)
	}
	return replay.Entry{Tag: messageTag(a.Tag).from(a.Client)}
}

// legacyEntry is RecoveredEntry for a record of the journal's format 1. Such a record has 8 bytes of the MAC, not the retain
// flag, and of the QoS only whether it was 2. That is enough to acknowledge a copy, because no copy is routed. Where the topic
// is missing too, every copy is a replay.
func legacyEntry(a *journal.Accepted) replay.Entry {
	if len(a.Topic) == 0 {
		return replay.Entry{Session: sessionCount}
	}
	var mac [32]byte
	copy(mac[:8], a.Tag[:8])
	topicHash := hashTopic(a.Topic)
	e := replay.Entry{Session: sessionLegacy}
	e.Tag = legacyTag(newMessageTag(mac[:], &topicHash, legacyQoS(a.QoS), false), a.Client)
	return e
}

func legacyTag(t messageTag, client uint32) (kept [12]byte) {
	copy(kept[:8], t[:8])
	binary.LittleEndian.PutUint32(kept[8:], client)
	return kept
}

// legacyQoS returns one value for all that format 1 did not distinguish.
func legacyQoS(qos byte) byte {
	if qos == 2 {
		return 2
	}
	return 1
}

// redelivers reports whether p, which has the id of an accepted message, is that message again because its acknowledgement
// was lost with the connection: the same signature, topic, QoS (1 or 2) and retain flag, from the same client id, whose
// connection has ended since. A client id that is no longer among the last ones counts as one whose connection has not ended.
// The signature is not verified here.
//
// With userNameIsClientID, the broker uses every client's user name as its client id (use_username_as_clientid). A message
// from before the start may have come under another client id, when this was not set yet. The client of such a message is
// not compared: every publisher has the device's certificate in any case.
func (d *device) redelivers(p *Publish, e *envelope.Envelope, known replay.Entry, userNameIsClientID bool) bool {
	if p.QoS == 0 {
		return false
	}
	client := hashClient(p.ClientID)
	var tag [12]byte
	if known.Session&sessionLegacy == 0 {
		tag = d.tag(p, e).from(client)
	} else {
		tag = legacyTag(newMessageTag(d.mac(e), d.topic.hashOf(p.Topic), p.QoS, false), client)
	}
	came := known.Session & sessionCount
	if came == 0 && userNameIsClientID && bytes.Equal(p.ClientID, p.Identity) {
		return bytes.Equal(tag[:anyClient], known.Tag[:anyClient])
	}
	return tag == known.Tag && (came == 0 || d.endedSince(client, came))
}

// A publisher is a client id that a device has published from.
type publisher struct {
	client    uint32 // hash; 0: none
	departure uint32 // device.departures after the end of its latest connection; 0: none has ended
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// hashClient returns a hash other than 0, the same in every run. It does not have to resist a forger: every publisher has the
// device's certificate, and can connect with the same client id.
func hashClient(id []byte) uint32 { return crc32.Checksum(id, castagnoli) | 1 }

// published notes that a client has published a good message. When there are more client ids than the device has room
// for, the one whose connection ended longest ago is forgotten: what it sends again is a replay.
func (d *device) published(clientID []byte) {
	client := hashClient(clientID)
	oldest := 0
	for i := range d.publishers {
		if d.publishers[i].client == client {
			return
		}
		if d.publishers[i].departure < d.publishers[oldest].departure {
			oldest = i
		}
	}
	d.publishers[oldest] = publisher{client: client}
}

// disconnected notes the end of a connection. The end of one whose client has not published is ignored: there is nothing to
// redeliver, and it may not have been the device's. The broker also reports connections that it refused.
func (d *device) disconnected(clientID []byte) {
	client := hashClient(clientID)
	for i := range d.publishers {
		if d.publishers[i].client == client {
			d.departures = max(1, (d.departures+1)&sessionCount)
			d.publishers[i].departure = d.departures
			return
		}
	}
}

// endedSince reports whether a connection of the client is known to have ended since a message came.
func (d *device) endedSince(client, came uint32) bool {
	for _, known := range d.publishers {
		if known.client == client && known.departure > came {
			return true
		}
	}
	return false
}
