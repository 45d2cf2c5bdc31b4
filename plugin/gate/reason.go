package gate

// A Reason says why a publish was refused, or that it is Accepted or Redelivered. The zero value is Internal: a publish
// without a verdict is refused.
type Reason uint8

// The reasons, in the order of their checks.
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
	Forbidden     // a topic that the client may not use, gated or not
	Accepted
	Redelivered // accepted before, and sent again because the acknowledgement was lost: acknowledged, and nothing else
	ReasonCount // the number of reasons; not a reason itself
)

// String returns the reason's stable name.
func (r Reason) String() string {
	if r >= ReasonCount {
		r = Internal
	}
	return reasons[r].name
}

// Good reports whether the publisher gets a success.
func (r Reason) Good() bool { return r == Accepted || r == Redelivered }
