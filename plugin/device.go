package plugin

import (
	"hash/crc32"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
)

// A device is what the broker's thread keeps of a registered device between its publishes: made at the first, so that
// a million registered devices cost nothing until they speak.
type device struct {
	registered *registry.Device // what keys were made from
	keys       []*envelope.Key
	signedWith int // which of keys the message that was verified last is signed with

	noted       *registry.Device // when its use of a new secret was noted last; nil: it was not
	notedSecret int              // which of noted's secrets that was

	limiter    *rate.Limiter // of its publishes; nil: no limit
	limits     uint32        // devices.limits when limiter was set
	lines      *rate.Limiter // of its refusals in the log; nil: none yet
	publishers [4]publisher
	departures uint32 // connections of publishers that have ended, and one more
	bad        badSignatures
	noticed    time.Time // when it was last told of a refusal
	verdicts   verdicts
}

// signed reports whether the envelope is signed with any of the device's current secrets.
func (d *device) signed(e *envelope.Envelope) bool {
	for i, key := range d.keys {
		if e.SignedBy(key) {
			d.signedWith = i
			return true
		}
	}
	return false
}

// devices holds the devices that have published, by registry serial. Broker's thread only.
type devices struct {
	bySerial []*device
	limit    rate.Limit // messages a second for each device; rate.Inf: no limit
	burst    int
	limits   uint32 // how often the limit was changed
}

// setLimit changes the rate limit of every device, each from its next publish on.
func (ds *devices) setLimit(limit rate.Limit, burst int) {
	if ds.limit != limit || ds.burst != burst {
		ds.limit, ds.burst = limit, burst
		ds.limits++
	}
}

// limited brings a device's limiter up to date. What it has left of its burst stays as it is.
func (ds *devices) limited(d *device) {
	d.limits = ds.limits
	switch {
	case ds.limit == rate.Inf:
		d.limiter = nil
	case d.limiter == nil:
		d.limiter = rate.NewLimiter(ds.limit, ds.burst)
	default:
		d.limiter.SetLimit(ds.limit)
		d.limiter.SetBurst(ds.burst)
	}
}

// of returns the device of a registry entry, with its secrets as they are now and its token bucket as it was left; nil
// for nil.
func (ds *devices) of(registered *registry.Device) *device {
	if registered == nil {
		return nil
	}
	serial := int(registered.Serial)
	if serial >= len(ds.bySerial) {
		ds.bySerial = append(ds.bySerial, make([]*device, serial+1-len(ds.bySerial))...)
	}
	d := ds.bySerial[serial]
	if d == nil {
		d = &device{departures: 1}
		ds.limited(d)
		ds.bySerial[serial] = d
	}
	if d.limits != ds.limits {
		ds.limited(d)
	}
	if d.registered != registered {
		d.registered = registered
		d.keys = make([]*envelope.Key, len(registered.Secrets))
		for i, secret := range registered.Secrets {
			d.keys[i] = envelope.NewKey(secret)
		}
	}
	return d
}

// known returns the device of a registry entry if it has published before, else nil.
func (ds *devices) known(registered *registry.Device) *device {
	if registered == nil || int(registered.Serial) >= len(ds.bySerial) {
		return nil
	}
	return ds.bySerial[registered.Serial]
}

// A session is kept with every remembered message id, to tell a redelivery from a replay:
//
//	bits 63-32  a hash of the client id that the message came from
//	bit  31     it came at QoS 2
//	bit  30     a subscriber has been given it after its release (QoS 2)
//	bits 29-0   one more than how many connections of the device had ended when it came; 0: it came before the start,
//	            over a connection that has ended since
const (
	sessionQoS2     = 1 << 31
	sessionReleased = 1 << 30
	sessionCount    = 1<<30 - 1
)

// A publisher is a client id that a device has published from.
type publisher struct {
	client    uint32 // hash; 0: none
	departure uint32 // device.departures when its latest connection had ended; 0: none has
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// hashClient returns a hash other than 0, the same in every run. It need not resist a forger: whoever bears the device's
// certificate, as every publisher does, can connect with the very client id.
func hashClient(id []byte) uint32 { return crc32.Checksum(id, castagnoli) | 1 }

// published notes that a client has published a good message. When there are more client ids than the device has room
// for, the one whose connection ended longest ago gives way: what it sends again is taken for a replay.
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

// disconnected notes the end of a connection. That of a client which has not published is nobody's to redeliver on, and
// may not even have been the device's: the broker also tells of connections that it refused.
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

// session returns the mark of a message that p brings now.
func (d *device) session(p *Publish) uint64 {
	s := uint64(hashClient(p.ClientID))<<32 | uint64(d.departures)
	if p.QoS == 2 {
		s |= sessionQoS2
	}
	return s
}

// redelivers reports whether p, the same envelope as one that was accepted in session, is that message again because its
// acknowledgement was lost with the connection: at QoS 1 or 2, from the same client id, whose connection has ended since.
// A client id that is no longer among the last ones is taken for one that has not.
func (d *device) redelivers(p *Publish, session uint64) bool {
	client := hashClient(p.ClientID)
	if p.QoS == 0 || client != uint32(session>>32) {
		return false
	}
	if session&sessionCount == 0 {
		return true
	}
	for _, known := range d.publishers {
		if known.client == client && known.departure > uint32(session&sessionCount) {
			return true
		}
	}
	return false
}

// tag is what the replay memory keeps of an envelope's signature: with the signature verified, two envelopes of a
// device with the same id and tag are the same.
func tag(e *envelope.Envelope) [8]byte { return [8]byte(e.MAC[:8]) }

func (d *device) remember(e *envelope.Envelope, p *Publish) replay.Entry {
	return replay.Entry{Tag: tag(e), Session: d.session(p)}
}

// badSignatures counts a device's bad signatures within a minute.
type badSignatures struct {
	minute int64 // since 1970
	count  int
}

// add counts one more and reports whether it is the one that reaches the limit.
func (b *badSignatures) add(now time.Time, limit int) bool {
	if minute := now.Unix() / 60; minute != b.minute {
		*b = badSignatures{minute: minute}
	}
	b.count++
	return b.count == limit
}
