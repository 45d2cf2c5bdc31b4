package gate

import (
	"maps"

	"mosquitto-bouncer/plugin/brokerlog"
)

// maxOffenders is how many clients are disconnected for what they did between two ticks.
const maxOffenders = 64

// offenders are the clients that are to be disconnected in the next tick, each with the reason, unless their connections end
// before. Broker's thread only.
type offenders struct {
	waiting map[uintptr]offender // by connection
	kicking bool                 // the broker is disconnecting one now, and calls the plugin while it does so
}

// An offender is one of them.
type offender struct {
	device string
	client string
	why    string
}

// add notes a client to be disconnected. When there is no room for another one, the client stays connected until it offends
// again. It reports whether the connection was not on the list before.
func (o *offenders) add(p *Publish, why string) bool {
	if _, known := o.waiting[p.Connection]; known {
		return false
	}
	if len(o.waiting) < maxOffenders {
		if o.waiting == nil {
			o.waiting = make(map[uintptr]offender)
		}
		o.waiting[p.Connection] = offender{string(p.Identity), string(p.ClientID), why}
	}
	return true
}

// ended takes a connection off the list. It reports whether it was on it.
func (o *offenders) ended(connection uintptr) bool {
	_, known := o.waiting[connection]
	delete(o.waiting, connection)
	return known
}

// disconnect hands each offender to kick, and its log line to say. Only in a tick: the broker calls the plugin while it
// disconnects.
func (o *offenders) disconnect(kick func(client string), say func(device, line string)) {
	if len(o.waiting) == 0 {
		return
	}
	all := maps.Clone(o.waiting)
	clear(o.waiting)
	for _, offender := range all {
		line := brokerlog.Line("disconnected "+offender.why, "device", string(cut([]byte(offender.device), 64)), "client", string(cut([]byte(offender.client), 64)))
		say(offender.device, line)
		o.kick(func() { kick(offender.client) })
	}
}

// kick calls f, which makes the broker end connections.
func (o *offenders) kick(f func()) {
	o.kicking = true
	defer func() { o.kicking = false }()
	f()
}
