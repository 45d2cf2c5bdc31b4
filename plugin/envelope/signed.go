package envelope

// AppendSigned appends to dst the bytes that a signature is made over, with the payload as it was sent or in canonical
// form: for a person to look at. A Verifier does without.
func (e *Envelope) AppendSigned(dst []byte, canonical bool) []byte {
	dst = append(dst, e.DeviceID...)
	dst = append(dst, e.timestampText...)
	dst = append(dst, e.MessageIDText...)
	if canonical {
		return append(dst, e.Canonical()...)
	}
	return append(dst, e.Payload...)
}
