// Package gate has the words of a decision: what a client is about to do (Action, Publish), on which topics (Topic), the
// answers (Decision, Disposition) and their reasons (Reason).
package gate
