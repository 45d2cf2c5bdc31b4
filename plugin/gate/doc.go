// Package gate decides on everything that a client asks of the broker, and sees to it that nothing passes without a
// decision.
package gate
