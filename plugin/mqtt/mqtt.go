// Package mqtt has what the gateway publishes through the broker.
package mqtt

// A Message is one that the gateway publishes, for the clients that subscribe to its topic.
type Message struct {
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
}

// A UserProperty is a pair of MQTT 5's.
type UserProperty struct{ Name, Value string }
