package command

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// idVersion is the UUID version of a command's id (RFC 9562, section 5.8).
const idVersion = 8

// NewID returns the id of a command made at now, which is also the message id of its envelope: laid out as a UUID of
// version 7, by time, but of version 8.
//
// A device signs its messages with the secret that its commands are signed with. So that neither can pass for the other,
// they differ in the version of their ids: the gateway refuses a message of a device with version 8, a device refuses a
// command with any other.
func NewID(now time.Time) string {
	var id uuid.UUID
	_, _ = rand.Read(id[6:]) // never fails
	binary.BigEndian.PutUint16(id[0:], uint16(now.UnixMilli()>>32))
	binary.BigEndian.PutUint32(id[2:], uint32(now.UnixMilli()))
	id[6] = id[6]&0x0f | idVersion<<4
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// IsID reports whether a message id is one that only a command may have.
func IsID(id [16]byte) bool { return id[6]>>4 == idVersion }

// ValidID reports whether id is a command's id in the form in which the HTTP interface has it.
func ValidID(id string) bool { return validIDText([]byte(id)) }

// validIDText is ValidID without memory of its own.
func validIDText(id []byte) bool {
	parsed, err := uuid.ParseBytes(id)
	if err != nil || len(id) != 36 || !IsID(parsed) {
		return false
	}
	for _, c := range id {
		if c >= 'A' && c <= 'F' {
			return false
		}
	}
	return true
}
