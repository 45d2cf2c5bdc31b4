// Package downlink brings responses, commands and the clearing of retained messages to the broker's thread, the only one that may
// hand them to the broker, and wakes that thread so that they do not wait for its next time-out. It also takes devices'
// answers to commands.
package downlink

import (
	"time"

	"mosquitto-bouncer/plugin/mqtt"
)

// A Publish is one message for a device, on its way to the broker.
type Publish struct {
	mqtt.Message

	// Expires is the time from which on it is not given to the broker any more; zero: never.
	Expires time.Time
	// Good, if not nil, is asked on the broker's thread right before the message is given; false: it is not given.
	Good func() bool
	// Done, if not nil, is called on the broker's thread, once, with whether it was given to the broker.
	Done func(given bool)
}

// size is what the queue counts of p.
func (p Publish) size() int { return len(p.Payload) + len(p.Correlation) }
