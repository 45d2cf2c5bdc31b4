package envelope

import "crypto/hmac"

// AppendSigned appends to dst the bytes that a signature is made over, with the payload as it was sent or in canonical
// form: for a person to look at. SignedBy does without.
func (e *Envelope) AppendSigned(dst []byte, canonical bool) []byte {
	dst = append(dst, e.DeviceID...)
	dst = append(dst, e.timestampText...)
	dst = append(dst, e.MessageIDText...)
	if canonical {
		return append(dst, e.Canonical()...)
	}
	return append(dst, e.Payload...)
}

// IsMAC reports whether the envelope's signature is key's over any text: to find out what a firmware has signed by
// mistake. It verifies nothing.
func (e *Envelope) IsMAC(key *Key, text []byte) bool {
	key.mac.Reset()
	key.mac.Write(text)
	return hmac.Equal(key.mac.Sum(key.sum[:0]), e.MAC[:])
}
