package gate

// reasons describes each Reason once. The documents have their tables of reasons from here: `make docs` writes them.
var reasons = [ReasonCount]struct {
	// name is an interface: logs, metrics, audit records and notices to devices use it. It never changes.
	name string
	// summary is a short explanation; meaning and remedy say more, to the device's maker and the operator. Markdown, without a
	// full stop.
	summary, meaning, remedy string
}{
	Forbidden: {
		name:    "forbidden_topic",
		summary: "a device on a topic that it may not use, any client publishing to a response, command or rejected topic, or a last will",
		meaning: "The client may not use this topic; `detail` says why",
		remedy:  "See [Forbidden topics](#forbidden-topics)",
	},
	ForeignClient: {
		name:    "foreign_client_id",
		summary: "the client id is the user name of another identity",
		meaning: "The client id is the user name of another identity, for example another device's id",
		remedy:  "Use the client's own user name as its client id, or an id that is not a user name; operator: [Client ids](configuration.md#client-ids)",
	},
	NoTLSIdentity: {
		name:    "no_tls_identity",
		summary: "no certificate, or the user name is not its common name, or its CA does not sign devices",
		meaning: "The client presented no certificate, or its user name is empty or is not the common name (CN) of the certificate",
		remedy:  "Operator: `require_certificate true` and `use_identity_as_username true` on the listener. Device: connect with the certificate whose CN is the device id. A certificate with several CNs counts by its first, and only if it is UTF-8 or ASCII text (UTF8String, PrintableString, IA5String, T61String)",
	},
	TopicMismatch: {
		name:    "topic_mismatch",
		summary: "published on another device's topic",
		meaning: "The device level of the topic is not the connection's identity: a device publishes on another's topic",
		remedy:  "Device: publish to `device/<own id>/data`. If the device did not intend this, someone else may have its credentials",
	},
	RateLimited: {
		name:    "rate_limited",
		summary: "the device sends more than it may",
		meaning: "The device publishes more than `[publish] rate` and `burst` allow. Refused publishes count too. Or, of a device with a public key, so many signatures were bad that no more are verified: at most one a second after `[publish] max_bad_signatures` in a minute",
		remedy:  "Device: send less often, and wait before sending again. Operator: raise the limit",
	},
	TooLarge: {
		name:    "too_large",
		summary: "larger than `[publish] max_bytes`",
		meaning: "The publish, with its MQTT 5 properties, is larger than `[publish] max_bytes`, or has more than 64 properties",
		remedy:  "Device: split the payload. Operator: raise the limit",
	},
	Malformed: {
		name:    "malformed",
		summary: "not an envelope in its strict form",
		meaning: "Not an envelope; `detail` says why",
		remedy:  "Device maker: see [Details of malformed](#details-of-malformed)",
	},
	IdentityMismatch: {
		name:    "identity_mismatch",
		summary: "`device_id` in the message is another device's",
		meaning: "`device_id` in the message is not the connection's identity: one device uses another's id",
		remedy:  "Device: use its own id; letter case counts",
	},
	UnknownDevice: {
		name:    "unknown_device",
		summary: "the identity is not registered",
		meaning: "The identity is not in the registry, or its row was skipped",
		remedy:  "Operator: `bouncerctl device add`; look in the log for `skipped rows that are not devices`",
	},
	Disabled: {
		name:    "disabled",
		summary: "the device is registered and disabled",
		meaning: "The device is registered and disabled",
		remedy:  "Operator: enable it if it should be in service",
	},
	Stale: {
		name:    "stale",
		summary: "the timestamp is older than the tolerance allows",
		meaning: "The timestamp is older than the tolerance allows, by as much as `detail` says. Or message ids of that time are no longer remembered, because the host's clock was ahead for a time. A redelivery that comes too late is `stale` too, although its first copy was accepted",
		remedy:  "Device: set the clock (NTP), and sign messages again that waited too long. Operator: check the clock of the broker's host",
	},
	Future: {
		name:    "future",
		summary: "the timestamp is further ahead than the tolerance allows",
		meaning: "The timestamp is further ahead of the host's clock than the tolerance; `detail` says how far",
		remedy:  "As for `stale`. A common cause: milliseconds instead of seconds",
	},
	Replay: {
		name:    "replay",
		summary: "this message id was accepted before, and this is not a redelivery after a lost connection",
		meaning: "A message with this id has been accepted from this device, and this is not a [redelivery](envelope.md#sending-a-message-again)",
		remedy:  "Device: a new id for every message; after a lost acknowledgement, the same message over a new connection with the same client id, once. Otherwise an attacker sends recorded messages again",
	},
	BadSignature: {
		name:    "bad_signature",
		summary: "not signed with the device's secret or key",
		meaning: "The signature was made with another secret or key, or over other bytes",
		remedy:  "Device maker: see [A signature does not verify](#a-signature-does-not-verify). Otherwise the message was changed in transit",
	},
	Overloaded: {
		name:    "overloaded",
		summary: "the message is good, but there is no room for it",
		meaning: "The message is good, but there is no room for it: the journal or the disk is full, the messages of this device fill a quarter of the journal, or 4,194,304 ids are remembered. `detail` says which",
		remedy:  "Device: send it again later; it was not accepted. Operator: see [The journal](#the-journal)",
	},
	Internal: {
		name:    "internal",
		summary: "an error of this software; never an acceptance",
		meaning: "An error in this software. The line `internal error, caught` before it has a stack, unless such errors are frequent",
		remedy:  "Report it with these lines",
	},
	Accepted:    {name: "accepted"},
	Redelivered: {name: "redelivered"},
}
