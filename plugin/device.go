package plugin

import (
	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/registry"
)

// A device is what the broker's thread keeps of a registered device between its publishes: made at the first, so that
// a million registered devices cost nothing until they speak.
type device struct {
	registered *registry.Device // what keys were made from
	keys       []*envelope.Key
	limiter    *rate.Limiter
}

// devices holds the devices that have published, by registry serial. Broker's thread only.
type devices struct {
	bySerial []*device
	limit    rate.Limit // messages a second for each device; rate.Inf: no limit
	burst    int
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
		d = &device{limiter: rate.NewLimiter(ds.limit, ds.burst)}
		ds.bySerial[serial] = d
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
