package gate

import "unsafe"

// A Publish is one message as the broker presents it. Its slices belong to the broker and are valid during the call
// only.
type Publish struct {
	// Identity is the user name that the broker took from the client's certificate; empty without one.
	Identity []byte
	// Certified reports whether the client presented a certificate whose common name is Identity.
	Certified bool
	// Presented reports whether the client presented any certificate. CommonName is its common name; nil where there is none
	// that is text. For a Read they are set only with StrangersByCertificate.
	Presented  bool
	CommonName []byte
	// OtherCertificate reports that certificates are pinned for the device, and that the client's is not one of them. The
	// gateway sets it itself.
	OtherCertificate bool
	// OtherIssuer reports that [publish] issuers are set and that none of them signed the client's certificate.
	OtherIssuer bool
	// Subscriptions is the length of the broker's list of the session's subscriptions, which never shrinks. It is set only for
	// Subscribe and Unsubscribe.
	Subscriptions int
	// ClientID is the client's MQTT client id.
	ClientID []byte
	// Topic is the topic as the broker will route it, a listener's mount point included.
	Topic []byte
	// Payload is the message.
	Payload []byte
	// QoS is 0, 1 or 2.
	QoS byte
	// Retain asks the broker to keep the message for later subscribers.
	Retain bool
	// Connection identifies a connection as long as it exists. The broker reuses the number later for another connection.
	Connection uintptr
	// Properties are the broker's MQTT 5 properties of the message, only for calls of the Broker; nil: there are none. They
	// are set only for Message.
	Properties unsafe.Pointer
	// PropertyBytes is the size of Properties in a packet; less than 0: there are more of them than are counted, or they cannot
	// be counted.
	PropertyBytes int
	// Correlation and ResponseTopic are MQTT 5's, of a request for a response; nil without. They are not set for Access.
	Correlation, ResponseTopic []byte
}

// An Action is what a client is about to do with a topic, numbered as the broker numbers it (MOSQ_ACL_*).
type Action int

// The actions that the broker asks about.
const (
	Read        Action = 1 // a message is about to be delivered to the client
	Write       Action = 2 // a publish of the client, or its last will, is about to be routed
	Subscribe   Action = 4
	Unsubscribe Action = 8
)

// A Decision is the answer to a question of access. The zero value is Deny.
type Decision int

// The decisions.
const (
	Deny Decision = iota
	Allow
	NotConcerned   // the gateway does not decide on this: the broker decides as if the plugin were absent
	AllowCertified // Allow if the common name of the client's certificate is its user name, else NotConcerned
)

// A Disposition is what the broker is to do with a publish. The zero value is Refuse.
type Disposition int

// The dispositions.
const (
	Refuse  Disposition = iota // report an error to the publisher; route nothing
	Route                      // report success to the publisher; route the message unchanged
	Relay                      // report success to the publisher; route nothing, and publish a copy as the gateway's own message
	Swallow                    // report success to the publisher; route nothing
)
