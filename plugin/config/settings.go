package config

import "time"

// A section of bouncer.toml.
type section struct {
	name  string // "" is the top of the file
	title string // without a capital and a full stop
}

// sections are in the order of the documents.
var sections = []section{
	{"", "where data is stored"},
	{"publish", "what is gated, and what a device may send"},
	{"backend", "where accepted payloads go"},
	{"fleet", "a stream of NATS JetStream in place of the backend"},
	{"response", "the backend's answers"},
	{"command", "the backend's commands"},
	{"rejected", "notices of refusals"},
	{"http", "commands, devices, metrics and health"},
	{"journal", "accepted messages on disk"},
	{"dead_letters", "messages that were given up"},
	{"acl", "other topics and other clients"},
	{"registry", "how the devices' secrets are stored"},
	{"audit", "the record of refusals and changes"},
}

// table returns the settings, bound to the fields of c. To add one, see "How to add a setting" in CONTRIBUTING.md.
func (c *Config) table() []Setting {
	return []Setting{
		{Key: "state_dir", value: directory(&c.StateDir, "/var/lib/mosquitto-bouncer"),
			Text: "the directory of the journal and the dead letters. It must exist and belong to the broker's user. Each broker needs its own"},
		{Key: "database", value: directory(&c.Database, "/var/lib/mosquitto-bouncer/devices.db"),
			Text: "the SQLite file of the devices. It must exist: see `bouncerctl device`"},

		{Key: "publish.topics", value: topicFilters(&c.Publish.Topics, "device/+/data"),
			Text: "the topics that are gated: filters in which `+` is the device id. A message is accepted if that device has signed it, and it is fresh and new"},
		{Key: "publish.tolerance", value: duration(&c.Publish.Tolerance, 5*time.Minute, time.Second, 24*time.Hour).and(", whole seconds"),
			Text: "how far a timestamp may differ from the clock of the broker's host"},
		{Key: "publish.max_bytes", Reload: Live, value: size(&c.Publish.MaxBytes, 64<<10, 256, 268435455).and(" bytes"),
			Text: "the largest publish, its envelope and MQTT 5 properties included"},
		{Key: "publish.rate", Reload: Live, value: number(&c.Publish.Rate, "publishes a second", 0, 0, 1e6),
			Text: "how many publishes a second a device may make. `0`: no limit"},
		{Key: "publish.burst", Reload: Live, value: integer(&c.Publish.Burst, "publishes", 0, 0, 1e6),
			Text: "how many publishes a device may make at once. `0`: those of one second of `rate`, at least 1"},
		{Key: "publish.issuers", Reload: Live, value: issuerFiles(&c.Publish.Issuers),
			Text: "the CAs that sign devices' certificates: one of them must have signed it itself. `[]`: any CA that a listener trusts"},
		{Key: "publish.max_bad_signatures", Reload: Live, value: integer(&c.Publish.MaxBadSignatures, "publishes a minute", 60, 0, 1e6),
			Text: "a device's client is disconnected after this many publishes with a bad signature within a minute. `0`: never"},

		{Key: "backend.url", value: backendURL(&c.Backend.URL, defaultBackendURL),
			Text: "where a payload is posted. `{device_id}` in the path or the query becomes the device's id"},
		{Key: "backend.timeout", value: duration(&c.Backend.Timeout, 5*time.Second, 100*time.Millisecond, 5*time.Minute),
			Text: "the longest time for one request, from connecting to the last byte of the answer"},
		{Key: "backend.concurrency", value: integer(&c.Backend.Concurrency, "requests", 64, 1, 4096),
			Text: "how many requests run at once, of all devices together"},
		{Key: "backend.max_age", value: duration(&c.Backend.MaxAge, defaultBackendMaxAge, time.Minute, 8760*time.Hour),
			Text: "a message that is not delivered within this time after its acceptance becomes a dead letter"},
		{Key: "backend.batch", value: integer(&c.Backend.Batch, "messages", 1, 1, 1000),
			Text: "how many messages one request carries at most. Above 1 the URL must not have `{device_id}`, and devices get no responses"},
		{Key: "backend.linger", value: duration(&c.Backend.Linger, 20*time.Millisecond, time.Millisecond, 10*time.Second), needs: "backend.batch",
			Text: "how long a message waits for others to fill a batch"},
		{Key: "backend.order", value: choice(&c.Backend.Order, OrderDevice, OrderNone),
			Text: "`\"device\"`: a device's messages are sent one at a time, in their order. `\"none\"`: one device may use all connections"},
		{Key: "backend.fatal_statuses", value: statuses(&c.Backend.FatalStatuses),
			Text: "HTTP statuses with which a message becomes a dead letter at once, for example `[404, 501]`"},
		{Key: "backend.bearer_token_file", Reload: Renewed, value: secretFile(&c.Backend.BearerToken), unless: otherBackend,
			Text: "the token that is sent in `Authorization`. `\"\"`: none"},
		{Key: "backend.signing_secret_file", Reload: Renewed, value: secretFile(&c.Backend.SigningSecret), unless: otherBackend,
			Text: "the secret that signs each request, as in Standard Webhooks. `\"\"`: requests are not signed"},
		{Key: "backend.ca_file", Reload: Renewed, value: caFile(&c.Backend.TLS), unless: otherBackend,
			Text: "for https: the CAs of the backend. `\"\"`: the system's"},
		{Key: "backend.cert_file", Reload: Renewed, value: certificateFile(&c.Backend.TLS), unless: otherBackend,
			Text: "for https: the client certificate. `\"\"`: none"},
		{Key: "backend.key_file", Reload: Renewed, value: keyFile(&c.Backend.TLS), unless: otherBackend,
			Text: "the private key of `cert_file`; both or neither"},

		{Key: "fleet.servers", value: natsServers(&c.Fleet.Servers),
			Text: "the NATS servers, for example `[\"tls://n1:4222\", \"tls://n2:4222\", \"tls://n3:4222\"]`. `nats://` is only for loopback addresses. `[]`: messages go to `[backend]`"},
		{Key: "fleet.name", value: natsName(&c.Fleet.Name, ""), needs: "fleet.servers",
			Text: "the gateway's name, which no other has. It is needed"},
		{Key: "fleet.ca_file", value: caFile(&c.Fleet.TLS), needs: "fleet.servers",
			Text: "the CAs of the NATS servers. `\"\"`: the system's"},
		{Key: "fleet.cert_file", value: certificateFile(&c.Fleet.TLS), needs: "fleet.servers",
			Text: "the client certificate. `\"\"`: none"},
		{Key: "fleet.key_file", value: keyFile(&c.Fleet.TLS), needs: "fleet.servers",
			Text: "the private key of `cert_file`; both or neither"},
		{Key: "fleet.creds_file", value: natsCredentials(&c.Fleet.Credentials), needs: "fleet.servers",
			Text: "the credentials file of a NATS user, as `nsc` writes it. `\"\"`: none"},
		{Key: "fleet.prefix", value: natsName(&c.Fleet.Prefix, "bouncer"), needs: "fleet.servers",
			Text: "what the names of the stream and its subjects begin with"},
		{Key: "fleet.partitions", value: integer(&c.Fleet.Partitions, "partitions", 16, 1, 256), needs: "fleet.servers",
			Text: "how many partitions the devices are divided into; the same at every gateway, and fixed when the stream is made"},
		{Key: "fleet.replicas", value: integer(&c.Fleet.Replicas, "servers", 3, 1, 5), needs: "fleet.servers",
			Text: "how many servers store each message"},
		{Key: "fleet.dedup", value: duration(&c.Fleet.Dedup, 20*time.Minute, time.Second, 24*time.Hour).and(", and at least 2 x `publish.tolerance`"), needs: "fleet.servers",
			Text: "how long the stream recognises a message that is sent again, at some 250 bytes of memory for each message of this time"},
		{Key: "fleet.max_bytes", value: size(&c.Fleet.MaxBytes, 20<<30, 1<<20, 1<<50), needs: "fleet.servers",
			Text: "the maximum size of the stream when it is made. When it is full, messages wait in the journal"},
		{Key: "fleet.deliver", value: boolean(&c.Fleet.Deliver, false), needs: "fleet.servers",
			Text: "`false`: consumers read the stream themselves. It must be written; this version knows no other value"},

		{Key: "response.topic", value: optionalDeviceTopic(&c.Response.Topic, "device/{device_id}/response"),
			Text: "where a device gets the body of a 2xx answer. `\"\"`: answers are dropped"},
		{Key: "response.max_age", value: duration(&c.Response.MaxAge, time.Hour, time.Second, 8760*time.Hour),
			Text: "the answer to a message that was accepted longer ago than this is dropped"},
		{Key: "response.wrap", value: boolean(&c.Response.Wrap, false),
			Text: "`true`: the device gets a JSON object with `message_id`, `accepted_at`, `status` and `body`"},

		{Key: "command.topic", value: deviceTopic(&c.Command.Topic, "device/{device_id}/command"),
			Text: "where a device gets its commands; with `/result` appended, where it answers them. Commands are created over `[http]`"},
		{Key: "command.keys_file", Reload: Live, value: commandKeys(&c.Command.Keys),
			Text: "the gateway's own private keys, which sign the commands to devices with public keys: see `bouncerctl command-key`. `\"\"`: such devices get no commands"},

		{Key: "rejected.topic", value: optionalDeviceTopic(&c.Rejected.Topic, ""),
			Text: "where a device gets the reason why its publish was refused, at most once a second, for example `\"device/{device_id}/rejected\"`. `\"\"`: no notices"},

		{Key: "http.listen", value: hostPort(&c.HTTP.Listen),
			Text: "the address to listen on, for example `\"127.0.0.1:8080\"`. Every other than a loopback address needs a certificate. `\"\"`: no listener"},
		{Key: "http.token_file", Reload: Renewed, value: secretFile(&c.HTTP.Token), unless: otherListener,
			Text: "the bearer token that clients must present; needed with `listen`"},
		{Key: "http.cert_file", Reload: Renewed, value: certificateFile(&c.HTTP.TLS), unless: otherListener,
			Text: "the listener's certificate. `\"\"`: plain HTTP"},
		{Key: "http.key_file", Reload: Renewed, value: keyFile(&c.HTTP.TLS), unless: otherListener,
			Text: "the private key of `cert_file`; both or neither"},

		{Key: "journal.max_bytes", value: size(&c.Journal.MaxBytes, 1<<30, 1<<20, 1<<40).and(", and at least `publish.max_bytes` + 128KiB"),
			Text: "the maximum size of the journal. When it is full, publishes are refused"},
		{Key: "journal.device_share", value: number(&c.Journal.DeviceShare, "part of `max_bytes`", 0.25, 0.001, 1),
			Text: "how much of the journal one device may use"},
		{Key: "journal.sync", value: durationOrAlways(&c.Journal.Sync, 100*time.Millisecond, time.Millisecond, 10*time.Second),
			Text: "the time between two fsyncs; a power failure may lose the messages of this time. `\"always\"`: none is lost"},

		{Key: "dead_letters.max_bytes", value: size(&c.DeadLetters.MaxBytes, 1<<30, 1<<20, 1<<40).and(", and at least `publish.max_bytes` + 128KiB"),
			Text: "the maximum size of the dead letters"},
		{Key: "dead_letters.device_share", value: number(&c.DeadLetters.DeviceShare, "part of `max_bytes`", 0.1, 0.001, 1),
			Text: "how much of it one device may use"},
		{Key: "dead_letters.at_limit", value: choice(&c.DeadLetters.AtLimit, AtLimitStop, AtLimitDropOldest),
			Text: "when there is no room, `\"stop\"`: the device's messages wait in the journal. `\"drop-oldest\"`: the oldest letters are removed"},

		{Key: "acl.others", Reload: Live, value: choice(&c.ACL.Others, OthersAuto, OthersDefer, OthersAllow),
			Text: "on Mosquitto 2.0, access to topics that the plugin does not decide on. `\"defer\"`: an acl_file or another plugin decides; without either, the broker denies access. `\"allow\"`: access is allowed, and they are not asked. `\"auto\"`: chosen from the broker's configuration"},
		{Key: "acl.unknown_certificates", Reload: Live, value: choice(&c.ACL.UnknownCertificates, UnknownOthers, UnknownDeny),
			Text: "what clients may do whose certificate does not belong to a registered device. `\"others\"`: as `others` says. `\"deny\"`: nothing, unless `certificates` has their common name. `bouncerctl init` writes `\"deny\"`"},
		{Key: "acl.certificates", Reload: Live, value: commonNames(&c.ACL.Certificates),
			Text: "common names of certificates to which `unknown_certificates` does not apply: dashboards, backends, bridges"},

		{Key: "registry.key_file", Reload: Live, value: secretFile(&c.Registry.Key), unless: keyTakenAway,
			Text: "the key that encrypts the devices' secrets in the database: see `bouncerctl registry`. `\"\"`: secrets are stored as they are"},

		{Key: "audit.file", Reload: Live, value: optionalPath(&c.Audit.File, "/var/log/mosquitto-bouncer/audit.jsonl"), unless: auditSwitched,
			Text: "where refusals, changes of devices, reloads, start and stop are recorded, as JSON lines. `\"\"`: they are not recorded"},
		{Key: "audit.max_bytes", Reload: Live, value: size(&c.Audit.MaxBytes, 64<<20, 0, 1<<40).limited("64KiB to 1TiB, or 0"), unless: auditSwitched, needs: "audit.file",
			Text: "the size at which the file is renamed to FILE.1. `0`: it never is"},
		{Key: "audit.keep", Reload: Live, value: integer(&c.Audit.Keep, "files", 8, 1, 1000), unless: auditSwitched, needs: "audit.file",
			Text: "how many renamed files are kept"},
	}
}

// otherBackend: the secrets that were read may not be for the backend in force.
func otherBackend(now, next *Config) bool { return now.Backend.URL != next.Backend.URL }

// otherListener: a listener is added, or its TLS is switched on or off. One that is to go may lose its token as well: then the one in
// force stays until it does.
func otherListener(now, next *Config) bool {
	return now.HTTP.Listen == "" && next.HTTP.Listen != "" ||
		now.HTTP.Listen != "" && next.HTTP.Token == nil ||
		(now.HTTP.TLS == nil) != (next.HTTP.TLS == nil)
}

// keyTakenAway: without its key, a registry that has encrypted secrets cannot be read.
func keyTakenAway(now, next *Config) bool { return next.Registry.Key == nil }

// auditSwitched: the audit log is switched on or off.
func auditSwitched(now, next *Config) bool { return (now.Audit.File == "") != (next.Audit.File == "") }
