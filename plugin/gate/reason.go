package gate

// A Reason says why a publish was refused, or that it is Accepted or Redelivered. The zero value is Internal: a publish
// without a verdict is refused.
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
	Redelivered // accepted before, and sent again because the acknowledgement was lost: acknowledged, and nothing else
	ReasonCount // how many there are; no reason itself
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
