// Package device is the software of a device, in Go: it signs what the device publishes, sends it again where that is needed, and
// checks and executes commands. ../README.md is its specification, and has the limits.
//
// It has two parts. The core turns values into bytes and bytes into values, without a network, a file or a clock: Sign,
// VerifyCommand, CommandMemory, Answer and ReadNotice, with a Credential of Secret or PrivateKey. A Device connects over MQTT 5
// and TLS, and keeps every message on the disk until the gateway has accepted or refused it.
//
// What is refused is an *Error, whose Reason is a word of the specification.
//
// # The state directory
//
// It has two files: lock, which keeps a second Device out, and outbox, a log of what changes. Each change is on the disk before
// anything follows from it: a message before Publish returns, a signature before it is sent, a command before it is executed,
// an answer and an outcome before they are reported. When the log is more than twice as large as it was when it was written last,
// and 1 MiB, it is written again, so the directory takes at most three times what is kept, and 2 MiB. A damaged end, as a crash
// leaves it, is cut off; damage elsewhere is an error of Open.
package device
