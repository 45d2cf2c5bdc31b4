package gate

// A Reason is why a publish was refused, or Accepted or Redelivered. The zero value is Internal: what was never decided is refused.
type Reason uint8

// The reasons, in the order in which they are looked for.
const (
	Internal Reason = iota // anything unexpected; always a refusal
	NoTLSIdentity
	TopicMismatch
	RateLimited
	TooLarge
	Malformed
	IdentityMismatch
	UnknownDevice
	Disabled
	Stale
	Future
	Replay
	BadSignature
	Overloaded    // the message is good, but there is no room to remember or to keep it
	ForeignClient // the client id is another identity's
	Forbidden     // a topic with which the client has no business, gated or not
	Accepted
	Redelivered // accepted before, and here again because the acknowledgement was lost: acknowledged, and no more
	ReasonCount
)

// String returns the reason's stable name.
func (r Reason) String() string {
	if r >= ReasonCount {
		r = Internal
	}
	return reasons[r].name
}

// Good reports whether the publisher is told success.
func (r Reason) Good() bool { return r == Accepted || r == Redelivered }
