// Package downlink brings responses, commands and the clearing of retained messages to the broker's thread, the only one that may
// hand them to the broker, and wakes that thread so that they do not wait for its next time-out. It also takes devices'
// answers to commands.
package downlink

import "time"

// A Publish is one message for a device.
type Publish struct {
	Topic   string
	Payload []byte
	QoS     byte // 0, 1 or 2
	Retain  bool // an empty payload then removes what is retained

	// The rest is MQTT 5's; a client that speaks 3.1.1 gets the message without it.
	Correlation []byte         // correlation data; nil: none
	User        []UserProperty // in this order
	// Expiry is the message expiry interval in seconds, which the broker applies for every subscriber; 0: none.
	Expiry uint32
	// Properties are further properties in the form of the broker's side; nil: none.
	Properties []byte

	// Expires is the time from which on it is not given to the broker any more; zero: never.
	Expires time.Time
	// Good, if not nil, is asked on the broker's thread right before the message is given; false: it is not given.
	Good func() bool
	// Done, if not nil, is called on the broker's thread, once, with whether it was given to the broker.
	Done func(given bool)
}

// A UserProperty is a pair of MQTT 5's.
type UserProperty struct{ Name, Value string }

// size is what the queue counts of p.
func (p Publish) size() int { return len(p.Payload) + len(p.Correlation) }
