package forward

// maxUnreadable is how often a message is sent whose answer cannot be read. With the back-off between them that is half a
// minute, as a rule.
const maxUnreadable = 10

// givenUp counts a request of p whose answer could not be read, and reports whether it was the last one. A garbled one
// does not count while the backend as a whole seems down: it may not be the message's backend at all.
func givenUp(p *parcel, means Meaning) bool {
	if means != Unreadable && (means != Garbled || p.probe) {
		return false
	}
	s := &p.spans[0]
	s.unreadable++
	return s.unreadable >= maxUnreadable
}
