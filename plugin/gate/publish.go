package gate

import "unsafe"

// A Publish is one message as the broker presents it. Its slices belong to the broker and are valid during the call
// only.
type Publish struct {
	// Identity is the user name that the broker took from the client's certificate; empty without one.
	Identity []byte
	// Certified reports whether the client presented a certificate whose common name is Identity.
	Certified bool
	// Presented reports whether the client presented any certificate, and CommonName is the common name of that; nil where
	// there is none that is text. Of a Read they are told only with StrangersByCertificate.
	Presented  bool
	CommonName []byte
	// OtherCertificate reports that certificates are pinned for the device, and that the client's is none of them. The
	// gateway finds it out itself.
	OtherCertificate bool
	// OtherIssuer reports that [publish] issuers are set and that none of them has signed the certificate that the client
	// presented.
	OtherIssuer bool
	// Subscriptions is the length of the broker's list of the session's subscriptions, which never shrinks. Only Subscribe
	// and Unsubscribe are told it.
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
	// Connection tells connections apart that exist at the same time. The broker uses a number again for another one.
	Connection uintptr
	// Properties are the broker's MQTT 5 properties of the message, for Host alone; nil: there are none. Only Message is
	// given them.
	Properties unsafe.Pointer
	// PropertyBytes is how many bytes Properties take in a packet; less than 0: more of them than are counted, or nothing
	// can count them.
	PropertyBytes int
	// Correlation and ResponseTopic are MQTT 5's, of a request for a response; nil without. Access is not told them.
	Correlation, ResponseTopic []byte
}

// An Action is what a client is about to do with a topic, numbered as the broker numbers it (MOSQ_ACL_*).
type Action int

// The actions that the broker asks about.
const (
	Read        Action = 1 // a message is about to be delivered to the client
	Write       Action = 2 // a publish of the client's, or its last will, is about to be routed
	Subscribe   Action = 4
	Unsubscribe Action = 8
)

// A Decision is the answer to a question of access. The zero value is Deny.
type Decision int

// The decisions.
const (
	Deny Decision = iota
	Allow
	NotConcerned   // the gateway has no say in this: the broker decides as if it were absent
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
