package config

import (
	"slices"
	"time"
)

// The values of backend.order.
const (
	OrderDevice = "device"
	OrderNone   = "none"
)

// The values of DeadLetters.AtLimit.
const (
	AtLimitStop       = "stop"
	AtLimitDropOldest = "drop-oldest"
)

// maxFatalStatuses is how many statuses backend.fatal_statuses may have.
const maxFatalStatuses = 64

// Response is [response]: the backend's answers.
type Response struct {
	// Topic is where a device gets the body of a 2xx answer: a topic in which
	// one level is {device_id}, and which is not gated. "": answers are
	// dropped. Default "device/{device_id}/response".
	Topic string
	// MaxAge is how long after the acceptance of a message its answer still
	// goes to the device: 1s to 8760h. Default "1h".
	MaxAge time.Duration
	// Wrap puts the answer into a JSON object with the message's id, the time
	// of its acceptance and the status. Default false.
	Wrap bool
}

// DeadLetters is [dead_letters]: the messages that were given up.
type DeadLetters struct {
	// MaxBytes is the room that their database may take: 1MiB to 1TiB, and at
	// least publish.max_bytes + 128KiB. Default "1GiB".
	MaxBytes int64
	// DeviceShare is which part of it one device may take, 0.001 to 1. Default
	// 0.1.
	DeviceShare float64
	// AtLimit is what happens where there is no room: "stop", the default (the
	// messages stay in the journal, and nothing of the device is sent), or
	// "drop-oldest" (the oldest letters are removed).
	AtLimit string
}

func (d *document) response() Response {
	return Response{
		Topic:  d.deviceTopic("response.topic", "device/{device_id}/response", true),
		MaxAge: d.duration("response.max_age", time.Hour, time.Second, 8760*time.Hour),
		Wrap:   d.boolean("response.wrap", false),
	}
}

func (d *document) deadLetters() DeadLetters {
	return DeadLetters{
		MaxBytes:    d.size("dead_letters.max_bytes", 1<<30, 1<<20, 1<<40),
		DeviceShare: d.number("dead_letters.device_share", 0.1, 0.001, 1),
		AtLimit:     d.choice("dead_letters.at_limit", AtLimitStop, AtLimitDropOldest),
	}
}

// boolean reads true or false.
func (d *document) boolean(key string, byDefault bool) bool {
	v, set := d.value(key)
	if !set {
		return byDefault
	}
	b, ok := v.(bool)
	if !ok {
		d.problem(key, "is %s; write true or false", kindOf(v))
		return byDefault
	}
	return b
}

// statuses reads a list of HTTP statuses from 300 to 599, in ascending order.
func (d *document) statuses(key string) (statuses []int) {
	v, set := d.value(key)
	if !set {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		d.problem(key, "is %s; write a list of statuses, for example [404, 501]", kindOf(v))
		return nil
	}
	if len(list) > maxFatalStatuses {
		d.problem(key, "has %d statuses; give %d at most", len(list), maxFatalStatuses)
		return nil
	}
	for _, v := range list {
		n, ok := v.(int64)
		switch {
		case !ok:
			d.problem(key, "has %s in the list; write statuses as integers, for example [404, 501]", kindOf(v))
		case n < 300 || n > 599:
			d.problem(key, "%d is out of range; use 300 to 599", n)
		case slices.Contains(statuses, int(n)):
			d.problem(key, "%d is given twice; remove one", n)
		default:
			statuses = append(statuses, int(n))
		}
	}
	slices.Sort(statuses)
	return statuses
}
