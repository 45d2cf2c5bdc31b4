package device

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/envelope"
)

// Limits of the specification.
const (
	// MaxMessageBytes is the greatest length of a message unless set otherwise, in bytes. The gateway's limit is the same.
	MaxMessageBytes = 65536
	// maxMessageBytes bounds the setting.
	maxMessageBytes = 1 << 20
	// maxInteger is 2^53-1, the greatest integer that every JSON library keeps.
	maxInteger = 1<<53 - 1
	// commandVersion is the version of the UUIDs that commands have.
	commandVersion = 8
)

// A Message is what Sign makes a signed message of.
type Message struct {
	DeviceID  string
	Timestamp int64  // seconds since 1970-01-01 UTC
	MessageID string // a UUID, new for every message
	Payload   []byte // one JSON value, signed and sent as it is but for white space around it
	MaxBytes  int    // of the signed message; 0: MaxMessageBytes
}

// Sign returns the message to publish. What the gateway would refuse is an *Error: with the reason device_id, timestamp,
// message_id, payload or too_large. Another error is that of the private key.
func Sign(c *Credential, m Message) ([]byte, error) {
	limit := m.MaxBytes
	if limit == 0 {
		limit = MaxMessageBytes
	}
	switch {
	case c == nil || c.signer == nil:
		return nil, errors.New("device: no credential")
	case !deviceid.Valid(m.DeviceID):
		return nil, errDeviceID
	case m.Timestamp < 0 || m.Timestamp > maxInteger:
		return nil, errTimestamp
	}
	if id, ok := parseUUID(m.MessageID); !ok || version(id) == commandVersion {
		return nil, errMessageID
	}
	payload, err := checkPayload(m.Payload, limit)
	if err != nil {
		return nil, err
	}
	if messageLen(m.DeviceID, m.Timestamp, len(payload), c.signature) > limit {
		return nil, errTooLarge
	}
	seconds := strconv.FormatInt(m.Timestamp, 10)
	signature, err := c.signer.Signature(fmt.Appendf(nil, "%s%s%s%s", m.DeviceID, seconds, m.MessageID, payload))
	if err != nil {
		return nil, fmt.Errorf("device: signing: %w", err)
	}
	if len(signature) != c.signature {
		return nil, errors.New("device: signing: the signature has another length than the algorithm's")
	}
	return assemble(m.DeviceID, m.Timestamp, m.MessageID, payload, hex.EncodeToString(signature)), nil
}

func assemble(deviceID string, timestamp int64, messageID string, payload []byte, signature string) []byte {
	return fmt.Appendf(nil, `{"device_id":"%s","timestamp":%d,"message_id":"%s","payload":%s,"signature":"%s"}`,
		deviceID, timestamp, messageID, payload, signature)
}

// messageLen is the length of what assemble returns.
func messageLen(deviceID string, timestamp int64, payload, signature int) int {
	const fixed = len(`{"device_id":"","timestamp":,"message_id":"","payload":,"signature":""}`)
	return fixed + len(deviceID) + len(strconv.FormatInt(timestamp, 10)) + envelope.MessageIDLen + payload + 2*signature
}

// checkPayload returns a payload without white space around it, if it is one. One that is longer than limit is not read.
func checkPayload(payload []byte, limit int) ([]byte, error) {
	payload = bytes.Trim(payload, " \t\r\n")
	if len(payload) > limit {
		return nil, errTooLarge
	}
	switch _, err := envelope.AppendCanonical(nil, payload); {
	case errors.Is(err, envelope.ErrDepth):
		return nil, errDepth
	case err != nil:
		return nil, errPayload
	}
	return payload, nil
}

// parseUUID reads a UUID of 36 characters, in either letter case, and no other form.
func parseUUID(text string) (id [16]byte, ok bool) {
	if len(text) != envelope.MessageIDLen {
		return id, false
	}
	var digits [32]byte
	n := 0
	for i := range len(text) {
		hyphen := i == 8 || i == 13 || i == 18 || i == 23
		if (text[i] == '-') != hyphen {
			return id, false
		}
		if !hyphen {
			digits[n] = text[i]
			n++
		}
	}
	_, err := hex.Decode(id[:], digits[:])
	return id, err == nil
}

func version(id [16]byte) byte { return id[6] >> 4 }

func formatUUID(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}
