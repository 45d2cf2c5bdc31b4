package gate

import (
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/registry"
)

// A device is what the broker's thread keeps of a registered device between its publishes: made at the first, so that
// a million registered devices cost nothing until they speak.
type device struct {
	registered *registry.Device // what verifiers were made from
	verifiers  []envelope.Verifier
	signedWith int // which of verifiers accepted the message that was verified last

	noted       *registry.Device // when its use of a new secret was noted last; nil: it was not
	notedSecret int              // which of noted's secrets that was

	limiter    *rate.Limiter // of its publishes; nil: no limit
	limits     uint32        // devices.limits when limiter was set
	publishers [4]publisher
	departures uint32 // how many connections of publishers have ended, plus one
	topic      lastTopic
	bad        badSignatures
	failures   *keyFailures // of a device with public keys; nil: it has secrets
	noticed    time.Time    // when it got the last notice of a refusal
	verdicts   verdicts
}

// signed reports whether the envelope is signed with any of the device's current secrets or public keys. Of a device with public
// keys that is only for keyBudget to ask.
func (d *device) signed(e *envelope.Envelope) bool {
	for i, verifier := range d.verifiers {
		if verifier.Verify(e) {
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

// limited updates a device's limiter. The tokens that are left of its burst do not change.
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

// of returns the device of a registry entry, with its present secrets or keys and its unchanged token bucket; nil for nil.
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
		d.adopt(registered)
	}
	return d
}

// adopt takes over what the registry says of the device.
func (d *device) adopt(registered *registry.Device) {
	d.registered = registered
	keys := registered.Keys()
	d.verifiers = make([]envelope.Verifier, 0, len(registered.Secrets)+len(keys))
	for _, secret := range registered.Secrets {
		d.verifiers = append(d.verifiers, envelope.NewVerifier(secret))
	}
	for _, key := range keys {
		d.verifiers = append(d.verifiers, envelope.NewKeyVerifier(key))
	}
	switch {
	case len(keys) == 0:
		d.failures = nil
	case d.failures == nil:
		d.failures = new(keyFailures)
	}
}

// known returns the device of a registry entry if it has published before, else nil.
func (ds *devices) known(registered *registry.Device) *device {
	if registered == nil || int(registered.Serial) >= len(ds.bySerial) {
		return nil
	}
	return ds.bySerial[registered.Serial]
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
