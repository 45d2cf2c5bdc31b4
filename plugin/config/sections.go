package config

import (
	"crypto/tls"
	"time"

	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/secret"
)

// The structs of this file hold the values of bouncer.toml. The table in settings.go has the defaults and ranges.

// Publish is [publish]: what is gated, and what a device may send.
type Publish struct {
	// Topics are the gated topic filters, at least one. In each exactly one level is "+", the device id; none has "#" or
	// begins with "$", and no topic matches two.
	Topics []string
	// Tolerance is how far a timestamp may differ from the clock of the broker's host, in whole seconds.
	Tolerance time.Duration
	// MaxBytes is the largest publish in bytes, the envelope included.
	MaxBytes int
	// Rate is the publishes a second that each device may make, fractions allowed. 0: no limit.
	Rate float64
	// Burst is how many publishes a device may make at once before Rate holds it back. Without a rate it is 0, with one it
	// is at least 1: Load puts one second's worth where the file has 0.
	Burst int
	// Issuers are the certificates (DER) of the CAs that sign devices' certificates. A client's certificate counts for a
	// device only if one of them has signed it itself. None: any CA that a listener trusts may.
	Issuers [][]byte
	// MaxBadSignatures is how many of a device's publishes may fail for a bad signature within a minute before its client is
	// disconnected. 0: any number.
	MaxBadSignatures int
}

// Backend is [backend]: where accepted payloads go.
type Backend struct {
	// URL is where a payload is posted: absolute, http or https, without user name, password or fragment. {device_id} in
	// its path stands for the device id.
	URL string
	// Timeout bounds one request from connecting to the last byte of the answer.
	Timeout time.Duration
	// Concurrency is how many requests run at once.
	Concurrency int
	// MaxAge is how old an undelivered message becomes before it is a dead letter.
	MaxAge time.Duration
	// Batch is how many messages one request carries at most. Above 1 they go as a JSON array of CloudEvents, and URL has no
	// {device_id}.
	Batch int
	// Linger is how long a message waits for others to fill a batch.
	Linger time.Duration
	// Order is OrderDevice or OrderNone.
	Order string
	// FatalStatuses are statuses, in ascending order, with which a message is a dead letter at once.
	FatalStatuses []int
	// BearerToken is sent in Authorization; nil: none.
	BearerToken secret.Secret
	// SigningSecret signs requests as Standard Webhooks describes; nil: none.
	SigningSecret secret.Secret
	// TLS is nil for an http URL. For https: TLS 1.2 or later, the CAs of ca_file, or the system's where RootCAs is nil, and
	// the client certificate of cert_file, if any.
	TLS *tls.Config
}

// The values of Backend.Order.
const (
	OrderDevice = "device" // a device's messages go one at a time, in their order
	OrderNone   = "none"   // one device may use all connections
)

// Fleet is [fleet]: a stream of NATS JetStream in place of the backend.
type Fleet struct {
	// Servers are the URLs of the NATS servers: all tls, or all nats and on loopback addresses. None: there is no fleet, and
	// every other field is at its default.
	Servers []string
	// Name is the gateway's, of the characters A-Z a-z 0-9 _ -.
	Name string
	// TLS is nil for nats URLs. For tls: TLS 1.2 or later, the CAs of ca_file, or the system's where RootCAs is nil, and the
	// client certificate of cert_file, if any.
	TLS *tls.Config
	// Credentials are the content of a credentials file of NATS; nil: none.
	Credentials secret.Secret
	// Prefix begins the names of streams and subjects.
	Prefix string
	// Partitions is how many the stream has.
	Partitions int
	// Replicas is how many servers store each message.
	Replicas int
	// Dedup is how long the stream recognises a message that is sent again.
	Dedup time.Duration
	// MaxBytes is the size of the stream when it is made.
	MaxBytes int64
	// Deliver is false.
	Deliver bool
}

// Response is [response]: the backend's answers.
type Response struct {
	// Topic is where a device gets the body of a 2xx answer: a topic in which one level is {device_id}, and which is not
	// gated. "": answers are dropped.
	Topic string
	// MaxAge is how long after the acceptance of a message its answer still goes to the device.
	MaxAge time.Duration
	// Wrap puts the answer into a JSON object with the message's id, the time of its acceptance and the status.
	Wrap bool
}

// Command is [command]: the backend's commands.
type Command struct {
	// Topic is where a device gets its commands: a topic in which one level is {device_id}, and which is not gated.
	Topic string
	// Keys are the gateway's own, for devices with public keys; nil: it has none.
	Keys *commandkey.Set
}

// ResultTopic is where a device publishes its answers to commands: Topic with "/result" behind it.
func (c Command) ResultTopic() string { return c.Topic + "/result" }

// Rejected is [rejected]: telling devices of refused publishes.
type Rejected struct {
	// Topic is where a device gets the reason why its publish was refused: a topic in which one level is {device_id}, and which is
	// not gated. "": it is not told.
	Topic string
}

// HTTP is [http]: commands, metrics and health.
type HTTP struct {
	// Listen is the host:port to listen on; a loopback address, or TLS is set. "": no listener.
	Listen string
	// Token is the bearer token that clients present. With Listen there is one.
	Token secret.Secret
	// TLS serves the certificate of cert_file and key_file, TLS 1.2 or later; nil: plain HTTP.
	TLS *tls.Config
}

// Journal is [journal]: the log of accepted messages in StateDir.
type Journal struct {
	// MaxBytes is the room that it may take. Publishes are refused when it is full.
	MaxBytes int64
	// DeviceShare is the part of MaxBytes that one device's messages and ids may take, but never less than one message of
	// the largest size.
	DeviceShare float64
	// Sync is the time between two fsyncs: what a power failure may cost. 0: fsync before every PUBACK.
	Sync time.Duration
}

// DeadLetters is [dead_letters]: the messages that were given up.
type DeadLetters struct {
	// MaxBytes is the room that their database may take.
	MaxBytes int64
	// DeviceShare is which part of it one device may take.
	DeviceShare float64
	// AtLimit is what happens where there is no room: AtLimitStop or AtLimitDropOldest.
	AtLimit string
}

// The values of DeadLetters.AtLimit.
const (
	AtLimitStop       = "stop"        // the messages stay in the journal, and nothing of the device is sent
	AtLimitDropOldest = "drop-oldest" // the oldest letters are removed
)

// ACL is [acl]: other topics and other clients.
type ACL struct {
	// Others is the answer for them on Mosquitto 2.0. Mosquitto 2.1 needs none.
	Others string
	// UnknownCertificates is what clients may do whose certificate does not belong to a registered device.
	UnknownCertificates string
	// Certificates are the common names of certificates to which UnknownCertificates does not apply: dashboards, backends,
	// bridges. None of them gives a device that was removed its rights back.
	Certificates []string
}

// The values of ACL.Others.
const (
	OthersAuto  = "auto"  // OthersAllow or OthersDefer, as suits the broker's own configuration
	OthersDefer = "defer" // an acl_file or another plugin decides; without either, the broker denies
	OthersAllow = "allow" // they are not asked
)

// The values of ACL.UnknownCertificates.
const (
	UnknownOthers = "others" // what every client may that is no device
	UnknownDeny   = "deny"   // nothing, unless Certificates has its name
)

// Registry is [registry]: how the device database is kept.
type Registry struct {
	// Key encrypts the devices' secrets in the database: 64 hexadecimal digits. Secrets in plain text are read all the same.
	// nil: secrets are stored as they are.
	Key secret.Secret
}

// Audit is [audit]: the record of what was refused and what was changed.
type Audit struct {
	// File is where it is written, JSON lines. "": nowhere.
	File string
	// MaxBytes is the size at which the file is renamed to FILE.1 and a new one started; 0: it never is.
	MaxBytes int64
	// Keep is how many renamed files are kept.
	Keep int
}
