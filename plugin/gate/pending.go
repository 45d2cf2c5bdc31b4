package gate

import (
	"bytes"

	"mosquitto-bouncer/plugin/envelope"
)

// A pendingVerdict is the verdict on the message that the broker asked about last, together with the message.
type pendingVerdict struct {
	set      bool // no MESSAGE event has come for it yet
	publish  Publish
	device   *device
	envelope *envelope.Envelope
	reason   Reason
	detail   error

	memory []byte // holds what publish borrows
}

// keep copies p, so that no other code can change the bytes that the verdict is on. A message longer than maxBytes is refused
// whatever is in it, and is not copied.
func (v *pendingVerdict) keep(p *Publish, maxBytes int) {
	*v = pendingVerdict{set: true, publish: *p, memory: v.memory} // the reason is Internal until another is set
	if len(p.Payload) > maxBytes {
		return
	}
	m := v.memory[:0]
	m = append(m, p.Payload...)
	m = append(m, p.Topic...)
	m = append(m, p.Identity...)
	m = append(m, p.ClientID...)
	v.memory = m
	take := func(n int) []byte {
		part := m[:n:n]
		m = m[n:]
		return part
	}
	v.publish.Payload = take(len(p.Payload))
	v.publish.Topic = take(len(p.Topic))
	v.publish.Identity = take(len(p.Identity))
	v.publish.ClientID = take(len(p.ClientID))
	v.publish.CommonName = nil // of the certificate, which is not kept
}

// sameMessage reports whether p is the same message on the same topic. The client may differ: it is the one that reads it.
func (v *pendingVerdict) sameMessage(p *Publish) bool {
	return bytes.Equal(v.publish.Topic, p.Topic) && bytes.Equal(v.publish.Payload, p.Payload)
}

// samePublish reports whether p is the publish that the verdict is on.
func (v *pendingVerdict) samePublish(p *Publish) bool {
	return v.sameMessage(p) && bytes.Equal(v.publish.Identity, p.Identity) && bytes.Equal(v.publish.ClientID, p.ClientID) &&
		v.publish.QoS == p.QoS && v.publish.Retain == p.Retain
}
